//! Labels: words of the owner's on a sandbox, and which of them are fit. Pure.

use std::collections::BTreeMap;

/// Labels of one sandbox, in the order of their names.
pub type Labels = BTreeMap<String, String>;

/// Most labels of one sandbox.
const MAX_LABELS: usize = 64;
/// Longest name of a label, in bytes.
const MAX_NAME: usize = 128;
/// Longest value of a label, in bytes.
const MAX_VALUE: usize = 1024;

/// What is wrong with these labels.
pub(super) fn faults(labels: &Labels) -> Vec<String> {
    let mut faults = Vec::new();
    if labels.len() > MAX_LABELS {
        faults.push(format!("{} labels, more than {MAX_LABELS}", labels.len()));
    }
    for (name, value) in labels {
        if !is_name(name) {
            faults.push(format!(
                "label {name:?} is not 1 to {MAX_NAME} of letters, digits and ._-/"
            ));
        }
        if value.len() > MAX_VALUE || value.chars().any(char::is_control) {
            faults.push(format!(
                "the value of label {name:?} has control characters or more than {MAX_VALUE} bytes"
            ));
        }
    }
    faults
}

/// What is wrong with the name of a project.
pub(super) fn project_fault(project: &str) -> Option<String> {
    (!is_name(project))
        .then(|| format!("project {project:?} is not 1 to {MAX_NAME} of letters, digits and ._-/"))
}

fn is_name(name: &str) -> bool {
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Labels {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn plain_labels_pass_and_others_are_named() {
        assert!(faults(&of(&[("example.com/role", "web server"), ("a", "")])).is_empty());
        assert_eq!(
            faults(&of(&[("", "x"), ("a b", "x"), ("c", "\n")])).len(),
            3
        );
        let many: Labels = (0..=MAX_LABELS)
            .map(|n| (n.to_string(), String::new()))
            .collect();
        assert_eq!(faults(&many).len(), 1);
        assert!(project_fault("shop").is_none() && project_fault("a=b").is_some());
    }
}
