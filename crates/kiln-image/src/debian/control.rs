//! The `Field: value` paragraphs that `apt-cache show` prints.
//!
//! Owns parsing of packages and dependency expressions; knows nothing of where the text came from.

use thiserror::Error;

/// Paragraphs accepted in one text; a whole Debian release has about 70,000 packages.
const MAX_PARAGRAPHS: usize = 100_000;

/// Why a control paragraph was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ControlError {
    /// A line is neither a field, a continuation nor empty.
    #[error("line {line} of the package description is not a control field")]
    NotAField {
        /// Counted from one.
        line: usize,
    },
    /// A field that every package must have is absent.
    #[error("the description of package {package:?} has no {field} field")]
    MissingField {
        /// The package, empty when its name is what is missing.
        package: String,
        /// The field.
        field: &'static str,
    },
    /// A field's value cannot be what it should be.
    #[error("the description of package {package:?} has an invalid {field} field")]
    InvalidField {
        /// The package.
        package: String,
        /// The field.
        field: &'static str,
    },
    /// More paragraphs than any archive has.
    #[error("the package description has too many paragraphs")]
    TooLong,
}

/// One package as the archive describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// `libc6`.
    pub name: String,
    /// `2.36-9+deb12u13`.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Size of the `.deb` in bytes.
    pub size: u64,
    /// SHA-256 of the `.deb` in lower-case hex.
    pub sha256: String,
    /// Unpacked size in KiB, as the package claims.
    pub installed_kib: u64,
    /// `Pre-Depends` and `Depends`, in order.
    pub depends: Vec<Dependency>,
    /// Virtual packages that this one stands for.
    pub provides: Vec<String>,
}

/// One requirement: any of the alternatives satisfies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Package names, the preferred one first. Versions are not kept: apt offers one candidate
    /// per package out of one consistent archive, so there is nothing to choose by version.
    pub alternatives: Vec<String>,
}

impl Package {
    /// The name that `apt-get download` gives to the file.
    #[must_use]
    pub fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }
}

/// Parses the packages of a text; paragraphs without a download (installed only) are left out.
///
/// # Errors
/// A malformed paragraph is refused, never skipped.
pub fn parse_packages(text: &str) -> Result<Vec<Package>, ControlError> {
    let mut packages = Vec::new();
    for (count, paragraph) in paragraphs(text)?.into_iter().enumerate() {
        if count >= MAX_PARAGRAPHS {
            return Err(ControlError::TooLong);
        }
        if paragraph.get("Filename").is_some() {
            packages.push(package(&paragraph)?);
        }
    }
    Ok(packages)
}

struct Paragraph {
    fields: Vec<(String, String)>,
}

impl Paragraph {
    fn get(&self, name: &str) -> Option<&str> {
        let field = self
            .fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_str())
    }
}

fn paragraphs(text: &str) -> Result<Vec<Paragraph>, ControlError> {
    let mut all = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let not_a_field = ControlError::NotAField { line: index + 1 };
        if line.trim().is_empty() {
            if !fields.is_empty() {
                all.push(Paragraph {
                    fields: std::mem::take(&mut fields),
                });
            }
        } else if line.starts_with([' ', '\t']) {
            let (_, value) = fields.last_mut().ok_or(not_a_field)?;
            value.push('\n');
            value.push_str(line.trim());
        } else {
            let (name, value) = line.split_once(':').ok_or(not_a_field)?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    if !fields.is_empty() {
        all.push(Paragraph { fields });
    }
    Ok(all)
}

fn package(paragraph: &Paragraph) -> Result<Package, ControlError> {
    let name = paragraph.get("Package").unwrap_or_default().to_owned();
    let required = |field: &'static str| {
        let value = paragraph.get(field).filter(|value| !value.is_empty());
        value.ok_or_else(|| ControlError::MissingField {
            package: name.clone(),
            field,
        })
    };
    let invalid = |field| ControlError::InvalidField {
        package: name.clone(),
        field,
    };

    if !is_name(required("Package")?) {
        return Err(invalid("Package"));
    }
    let version = required("Version")?;
    if !is_version(version) {
        return Err(invalid("Version"));
    }
    let architecture = required("Architecture")?;
    if !is_name(architecture) {
        return Err(invalid("Architecture"));
    }
    let sha256 = required("SHA256")?.to_ascii_lowercase();
    if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(invalid("SHA256"));
    }
    let size = required("Size")?.parse().map_err(|_| invalid("Size"))?;
    let installed_kib = match paragraph.get("Installed-Size") {
        None => 0,
        Some(value) => value.parse().map_err(|_| invalid("Installed-Size"))?,
    };
    let mut depends = dependencies(paragraph.get("Pre-Depends").unwrap_or_default());
    depends.extend(dependencies(paragraph.get("Depends").unwrap_or_default()));
    let provides = dependencies(paragraph.get("Provides").unwrap_or_default());

    Ok(Package {
        version: version.to_owned(),
        architecture: architecture.to_owned(),
        size,
        sha256,
        installed_kib,
        depends,
        provides: provides
            .into_iter()
            .flat_map(|entry| entry.alternatives)
            .collect(),
        name,
    })
}

/// `a (>= 1) | b, c:any` becomes `[[a, b], [c]]`.
fn dependencies(expression: &str) -> Vec<Dependency> {
    let alternatives = |clause: &str| -> Vec<String> {
        let names = clause.split('|').filter_map(dependency_name);
        names.map(str::to_owned).collect()
    };
    let clauses = expression
        .split(',')
        .map(alternatives)
        .filter(|names| !names.is_empty());
    clauses
        .map(|alternatives| Dependency { alternatives })
        .collect()
}

/// The name in `name:any (>= 1) [amd64] <!nocheck>`.
fn dependency_name(alternative: &str) -> Option<&str> {
    let end = [' ', '\t', '\n', '(', '[', '<', ':'];
    let name = alternative.trim().split(end).next()?;
    is_name(name).then_some(name)
}

/// Debian policy 5.6.1, which also keeps slashes and leading dashes out of paths and arguments.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    name.bytes()
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(allowed)
        && name.len() <= 256
}

fn is_version(version: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'~' | b':');
    version
        .bytes()
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && version.bytes().all(allowed)
        && version.len() <= 256
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "00be21c0c17f08ddf26e82d3b53fe7a41efa4a288938da6bb69e89c4b25c281d";

    fn paragraph(extra: &str) -> String {
        format!(
            "Package: demo\nVersion: 1:2.0-1\nArchitecture: amd64\nInstalled-Size: 13\n\
             Filename: pool/demo.deb\nSize: 1504\nSHA256: {DIGEST}\n{extra}\n"
        )
    }

    #[test]
    fn reads_a_package_with_its_dependencies() {
        let text = paragraph(
            "Pre-Depends: libc6 (>= 2.34)\nDepends: awk | mawk (>= 1), perl:any, x [amd64] <!nocheck>\n\
             Provides: virtual-demo (= 1), other\nDescription: several\n lines: of text\n .",
        );
        let packages = parse_packages(&text).unwrap();
        let [package] = packages.as_slice() else {
            panic!("{packages:?}")
        };
        assert_eq!(package.file_name(), "demo_1%3a2.0-1_amd64.deb");
        assert_eq!(package.provides, ["virtual-demo", "other"]);
        let depends: Vec<Vec<String>> = package
            .depends
            .iter()
            .map(|entry| entry.alternatives.clone())
            .collect();
        assert_eq!(
            depends,
            [vec!["libc6"], vec!["awk", "mawk"], vec!["perl"], vec!["x"]]
        );
    }

    #[test]
    fn installed_only_paragraphs_have_no_download_and_are_left_out() {
        let text = format!(
            "Package: local\nVersion: 1\nArchitecture: amd64\n\n{}",
            paragraph("")
        );
        assert_eq!(parse_packages(&text).unwrap().len(), 1);
    }

    #[test]
    fn names_that_could_become_paths_or_options_are_refused() {
        for name in ["../../etc/passwd", "-o", "a b", "", "a/b"] {
            let text = paragraph("").replacen("demo", name, 1);
            assert!(parse_packages(&text).is_err(), "{name}");
        }
        for version in ["../1", "1/2", "-1"] {
            let text = paragraph("").replace("1:2.0-1", version);
            assert!(parse_packages(&text).is_err(), "{version}");
        }
    }

    #[test]
    fn digests_and_sizes_are_checked() {
        let short = paragraph("").replace(DIGEST, "abc");
        assert_eq!(
            parse_packages(&short),
            Err(ControlError::InvalidField {
                package: "demo".into(),
                field: "SHA256"
            })
        );
        let size = paragraph("").replace("1504", "-1");
        assert!(parse_packages(&size).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,400}") {
            let _ = parse_packages(&text);
        }

        #[test]
        fn any_field_value_is_parsed_or_refused(value in "[^\n]{0,80}", field in 0..8_usize) {
            let names =
                ["Package", "Version", "Size", "SHA256", "Depends", "Provides", "Filename", "X"];
            let _ = parse_packages(&format!("{}: {value}\n{}", names[field], paragraph("")));
        }
    }
}
