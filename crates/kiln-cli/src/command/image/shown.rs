//! Images as people read them.

use kiln_api::Image;

use crate::output::{size::bytes, table};

/// Characters of an id that tell it from others.
const SHORT: usize = 12;

/// A row for each name.
pub(super) fn list(images: &[Image], now_ms: u64) -> String {
    let mut rows =
        vec![["NAME", "ID", "PLATFORM", "SIZE", "UNIQUE", "USED", "BY"].map(str::to_owned)];
    for image in images {
        let nameless = ["-".to_owned()];
        let names = match &image.names[..] {
            [] => &nameless[..],
            names => names,
        };
        rows.extend(names.iter().map(|name| {
            [
                name.clone(),
                short(&image.id),
                image.platform.clone(),
                bytes(image.size_bytes),
                bytes(image.unique_bytes),
                table::age(now_ms.saturating_sub(image.last_used_at_ms)),
                match image.used_by.len() {
                    0 => "-".to_owned(),
                    users => users.to_string(),
                },
            ]
        }));
    }
    table::align(&rows)
}

/// All about one.
pub(super) fn details(image: &Image) -> String {
    let config = &image.config;
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push([name.to_owned(), value]);
        }
    };
    row("id", image.id.clone());
    for name in &image.names {
        row("name", name.clone());
    }
    row("manifest", image.manifest.clone().unwrap_or_default());
    row("platform", image.platform.clone());
    row("size", bytes(image.size_bytes));
    row("unique", bytes(image.unique_bytes));
    row("used by", image.used_by.join(" "));
    row("entrypoint", words(&config.entrypoint));
    row("command", words(&config.cmd));
    for (name, value) in &config.env {
        row("env", format!("{name}={value}"));
    }
    row("user", config.user.clone());
    row("workdir", config.working_dir.clone());
    row(
        "stop signal",
        config.stop_signal.clone().unwrap_or_default(),
    );
    row("ports", config.exposed_ports.join(" "));
    for (name, value) in &config.labels {
        row("label", format!("{name}={value}"));
    }
    for layer in &image.layers {
        row("layer", layer.clone());
    }
    table::align(&rows)
}

/// As they are told apart: with quotes.
fn words(words: &[String]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
    quoted.join(" ")
}

/// The beginning of an id.
pub(super) fn short(id: &str) -> String {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.chars().take(SHORT).collect()
}

#[cfg(test)]
mod tests {
    use kiln_api::ImageConfig;

    use super::*;

    fn image() -> Image {
        Image {
            id: "sha256:0123456789abcdef".into(),
            names: vec!["a:1".into(), "b:2".into()],
            manifest: None,
            platform: "linux/amd64".into(),
            size_bytes: 5 << 20,
            unique_bytes: 1 << 10,
            added_at_ms: 0,
            last_used_at_ms: 1000,
            used_by: vec!["abcdef012345".into()],
            layers: Vec::new(),
            config: ImageConfig {
                cmd: vec!["sh".into(), "-c".into(), "a b".into()],
                ..ImageConfig::default()
            },
        }
    }

    #[test]
    fn the_list_has_a_row_for_each_name() {
        let nameless = Image {
            names: Vec::new(),
            used_by: Vec::new(),
            ..image()
        };
        assert_eq!(
            list(&[image(), nameless], 61_000),
            "NAME  ID            PLATFORM     SIZE  UNIQUE  USED  BY\n\
             a:1   0123456789ab  linux/amd64  5.0M  1.0K    60s   1\n\
             b:2   0123456789ab  linux/amd64  5.0M  1.0K    60s   1\n\
             -     0123456789ab  linux/amd64  5.0M  1.0K    60s   -"
        );
    }

    #[test]
    fn details_leave_out_what_is_not_said() {
        let text = details(&image());
        assert!(text.contains("command   \"sh\" \"-c\" \"a b\""), "{text}");
        assert!(!text.contains("user"), "{text}");
    }
}
