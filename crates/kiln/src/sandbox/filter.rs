//! Which sandboxes a list shows. Pure.

use std::str::FromStr;

use super::{SandboxInfo, SandboxState};
use crate::error::{Error, ErrorCode};

/// One condition on a sandbox, written `NAME=VALUE`: `state=running`, `label=a`, `label=a=b`,
/// `project=shop`, `name=web` (a part of the name), `id=ab` (how the id begins), `image=alpine:3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Its id begins so.
    Id(String),
    /// Its name holds this.
    Name(String),
    /// It is in this state.
    State(SandboxState),
    /// It has this label, with this value if one is given.
    Label(String, Option<String>),
    /// It belongs to this project.
    Project(String),
    /// It was made of this image.
    Image(String),
}

impl Filter {
    /// Whether a sandbox meets the condition.
    #[must_use]
    pub fn fits(&self, sandbox: &SandboxInfo) -> bool {
        match self {
            Self::Id(start) => sandbox.id.starts_with(start),
            Self::Name(part) => sandbox.name.as_ref().is_some_and(|it| it.contains(part)),
            Self::State(state) => sandbox.state == *state,
            Self::Label(name, value) => sandbox
                .labels
                .get(name)
                .is_some_and(|has| value.as_ref().is_none_or(|value| has == value)),
            Self::Project(project) => sandbox.project.as_ref() == Some(project),
            Self::Image(image) => sandbox.image == *image,
        }
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = |why: String| {
            Error::new(ErrorCode::InvalidSpec, why).with_hint(
                "filters are id=…, name=…, state=…, label=NAME[=VALUE], project=… and image=…",
            )
        };
        let Some((name, value)) = text.split_once('=') else {
            return Err(refused(format!("filter {text:?} is not NAME=VALUE")));
        };
        let value_owned = value.to_owned();
        Ok(match name {
            "id" => Self::Id(value_owned),
            "name" => Self::Name(value_owned),
            "state" | "status" => Self::State(
                SandboxState::parse(value)
                    .ok_or_else(|| refused(format!("{value:?} is no state of a sandbox")))?,
            ),
            "label" => match value.split_once('=') {
                Some((label, value)) => Self::Label(label.to_owned(), Some(value.to_owned())),
                None => Self::Label(value_owned, None),
            },
            "project" => Self::Project(value_owned),
            "image" => Self::Image(value_owned),
            other => return Err(refused(format!("there is no filter {other:?}"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::SandboxSpec;
    use super::*;

    fn sandbox() -> SandboxInfo {
        let spec = SandboxSpec {
            name: Some("web-1".into()),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            project: Some("shop".into()),
            ..SandboxSpec::default()
        };
        SandboxInfo::from(&crate::store::SandboxRow::new(
            "abc".into(),
            spec,
            "alpine:3".into(),
        ))
    }

    #[test]
    fn filters_find_what_they_say_and_nothing_else() {
        let fits = |text: &str| text.parse::<Filter>().unwrap().fits(&sandbox());
        for text in [
            "id=ab",
            "name=web",
            "state=created",
            "status=created",
            "label=role",
            "label=role=web",
            "project=shop",
            "image=alpine:3",
        ] {
            assert!(fits(text), "{text}");
        }
        for text in [
            "id=b",
            "name=db",
            "state=running",
            "label=rol",
            "label=role=db",
            "project=sho",
            "image=alpine",
        ] {
            assert!(!fits(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in ["", "web", "state=zombie", "color=red", "=x"] {
            let error = text.parse::<Filter>().unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidSpec, "{text}");
        }
    }
}
