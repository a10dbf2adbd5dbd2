//! `--format`: results as whoever asks wants them.
//!
//! A template is text with fields in it, in the manner of Docker's; what it may name is known from
//! the [`fields`] of what is listed, so that a misspelt one is refused before anything is asked.

mod fields;
mod template;

use std::marker::PhantomData;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

pub(crate) use fields::{Fields, fields_of};
pub(crate) use template::{FormatError, Template};

use super::{Output, to_json};

/// Something that commands list or tell about.
pub(crate) trait Listed: Serialize + 'static {
    /// What a template may name.
    fn fields() -> Fields;
}

/// Says of shapes that travel that their fields are those that they are read with.
macro_rules! listed {
    ($($shape:ty),+ $(,)?) => {$(
        impl $crate::output::format::Listed for $shape {
            fn fields() -> $crate::output::format::Fields {
                $crate::output::format::fields_of::<$shape>()
            }
        }
    )+};
}
pub(crate) use listed;

listed!(
    kiln_api::BaseImage,
    kiln_api::Event,
    kiln_api::FileChange,
    kiln_api::FileInfo,
    kiln_api::HostInfo,
    kiln_api::Image,
    kiln_api::Kernel,
    kiln_api::Leftover,
    kiln_api::NamedNetwork,
    kiln_api::Network,
    kiln_api::NetworkProof,
    kiln_api::Sandbox,
    kiln_api::Session,
    kiln_api::Snapshot,
    kiln_api::Stats,
    kiln_api::Volume,
    kiln_daemon::Check,
);

/// How a command's results are printed.
#[derive(Debug, Args)]
pub(crate) struct Show<T: Listed> {
    /// Print this: json, or text with fields such as '{{.ID}} {{.Name}}' or 'table {{.ID}}\t{{.Name}}';
    /// also {{json .}}, {{upper .X}}, {{lower .X}}. A field that is none shows all there are
    #[arg(long, value_name = "TEMPLATE", value_parser = Format::of::<T>)]
    format: Option<Format>,
    #[arg(skip)]
    listed: PhantomData<T>,
}

/// What `--format` says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Format {
    /// As `--json`.
    Json,
    /// As without it.
    Usual,
    Template(Template),
}

impl Format {
    fn of<T: Listed>(text: &str) -> Result<Self, FormatError> {
        match text {
            "json" => Ok(Self::Json),
            "table" => Ok(Self::Usual),
            text => {
                let template: Template = text.parse()?;
                Ok(Self::Template(template.of(&T::fields())?))
            }
        }
    }
}

impl<T: Listed> Show<T> {
    /// Prints a list; `table` is what people see who ask for nothing else.
    pub(crate) fn list(&self, items: &[T], output: &Output, table: impl FnOnce() -> String) {
        self.list_or(items, output, || {
            output.line(&table());
            output.object(&items);
        });
    }

    /// Prints one thing.
    pub(crate) fn one(&self, item: &T, output: &Output, words: impl FnOnce() -> String) {
        match &self.format {
            Some(Format::Json) => output.line(&to_json(item)),
            Some(Format::Template(_)) => {
                self.list_or(std::slice::from_ref(item), output, || {});
            }
            None | Some(Format::Usual) => {
                output.line(&words());
                output.object(item);
            }
        }
    }

    /// As [`Show::list`], with something of its own where nothing is asked for.
    pub(crate) fn list_or(&self, items: &[T], output: &Output, usual: impl FnOnce()) {
        match &self.format {
            None | Some(Format::Usual) => usual(),
            Some(Format::Json) => output.line(&to_json(&items)),
            Some(Format::Template(template)) => {
                let items: Vec<Value> = items.iter().map(in_json).collect();
                let text = template.render(&items);
                if !text.is_empty() {
                    output.line(&text);
                }
            }
        }
    }
}

fn in_json(item: &impl Serialize) -> Value {
    serde_json::to_value(item).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kiln_api::Volume;

    use super::*;

    #[test]
    fn b8_2_fields_that_are_none_are_refused_with_all_there_are() {
        let error = Format::of::<Volume>("{{.Colour}}").unwrap_err().to_string();
        assert!(
            error.contains("Colour") && error.contains("size_bytes"),
            "{error}"
        );
        for text in [
            "{{.NAME}}",
            "table {{.Name}}\\t{{.SizeBytes}}",
            "{{json .}}",
            "json",
            "table",
        ] {
            assert!(Format::of::<Volume>(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "{{",
            "{{.Name",
            "{{name}}",
            "{{.Name.First}}",
            "{{range .Name}}",
        ] {
            assert!(Format::of::<Volume>(text).is_err(), "{text}");
        }
    }

    /// The fields are read off the types, so they are those of the contract, as committed.
    #[test]
    fn fields_are_those_of_the_contract() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let document: Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let shapes = &document["components"]["schemas"];
        let told = |name: &str| -> BTreeSet<String> {
            let fields = shapes[name]["properties"].as_object().unwrap();
            fields.keys().cloned().collect()
        };
        let known = |fields: Fields| -> BTreeSet<String> {
            fields.names().into_iter().map(str::to_owned).collect()
        };
        let pairs = [
            ("BaseImage", kiln_api::BaseImage::fields()),
            ("Event", kiln_api::Event::fields()),
            ("FileChange", kiln_api::FileChange::fields()),
            ("FileInfo", kiln_api::FileInfo::fields()),
            ("HostInfo", kiln_api::HostInfo::fields()),
            ("Image", kiln_api::Image::fields()),
            ("Kernel", kiln_api::Kernel::fields()),
            ("Leftover", kiln_api::Leftover::fields()),
            ("NamedNetwork", kiln_api::NamedNetwork::fields()),
            ("Network", kiln_api::Network::fields()),
            ("NetworkProof", kiln_api::NetworkProof::fields()),
            ("Sandbox", kiln_api::Sandbox::fields()),
            ("Session", kiln_api::Session::fields()),
            ("Snapshot", kiln_api::Snapshot::fields()),
            ("Stats", kiln_api::Stats::fields()),
            ("Volume", Volume::fields()),
        ];
        for (name, fields) in pairs {
            assert_eq!(known(fields), told(name), "{name}");
        }
        let inner = kiln_api::Network::fields();
        let (_, policy) = inner.get("policy").unwrap();
        assert_eq!(known(policy.clone()), told("NetworkPolicy"));
    }
}
