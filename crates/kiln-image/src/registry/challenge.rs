//! The `WWW-Authenticate` header (RFC 9110, section 11): what proof a registry asks for.

/// More than any registry sends.
const MAX_HEADER: usize = 8 << 10;

/// One kind of proof that would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A name and a password with every request.
    Basic,
    /// A token, which this server gives for this service.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// The proofs that a header's value names, of those that are known. Nonsense names none.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    if header.len() > MAX_HEADER {
        return Vec::new();
    }
    let schemes = schemes(header);
    let known = schemes.into_iter().filter_map(|(scheme, parameters)| {
        let value = |wanted: &str| {
            let named = parameters
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            named.map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            Some(Challenge::Basic)
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let realm = value("realm")?;
            let service = value("service");
            Some(Challenge::Bearer { realm, service })
        } else {
            None
        }
    });
    known.collect()
}

type Scheme = (String, Vec<(String, String)>);

/// Several schemes may stand in one header, with commas between them and between parameters: a word
/// with `=` behind it is a parameter, any other begins a scheme.
fn schemes(header: &str) -> Vec<Scheme> {
    let mut schemes: Vec<Scheme> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word = rest
            .find(|c: char| !is_token(c))
            .map_or(rest, |end| &rest[..end]);
        if word.is_empty() {
            return schemes;
        }
        rest = &rest[word.len()..];
        let Some(value) = rest.strip_prefix('=') else {
            schemes.push((word.to_owned(), Vec::new()));
            continue;
        };
        let Some((value, after)) = parameter_value(value) else {
            return schemes;
        };
        rest = after;
        if let Some((_, parameters)) = schemes.last_mut() {
            parameters.push((word.to_owned(), value));
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A token or a quoted string, and what stands behind it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| c == ',' || c.is_whitespace())
            .unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
        }
    }

    #[test]
    fn what_registries_send_is_read() {
        assert_eq!(parse(r#"Basic realm="Registry Realm""#), [Challenge::Basic]);
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b,c:d""#;
        assert_eq!(
            parse(hub),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io")
            )]
        );
        let odd = r#"bearer  Realm = "x""#;
        assert_eq!(parse(odd), []);
        let two = r#"Negotiate, BEARER realm="https://a/\"b",error=x, basic"#;
        assert_eq!(
            parse(two),
            [bearer("https://a/\"b", None), Challenge::Basic]
        );
        for nonsense in [
            "",
            ",",
            "=",
            "Bearer",
            r#"Bearer realm="x"#,
            "Digest realm=x",
        ] {
            assert_eq!(parse(nonsense), [], "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}", pieces in proptest::collection::vec(
            prop::sample::select(vec!["Bearer", " ", ",", "=", "\"", "\\", "realm", "x", "\u{e9}"]), 0..12)) {
            let _ = parse(&text);
            let _ = parse(&pieces.concat());
        }
    }
}
