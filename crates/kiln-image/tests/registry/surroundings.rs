//! What a process finds where it runs: kept credentials and certificates. Each pull is a process of
//! its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use kiln_image::Silent;
use kiln_image::credentials::Keyring;
use kiln_image::library::{ImageLibrary, PullRequest};
use kiln_image::registry::RegistrySetting;

use crate::bench::{Bench, config, layers};
use crate::support::registry::{Act, Layout, Proxy, Registry};
use crate::support::skip;

/// Not a test of its own: a process with an environment of its own.
#[test]
fn child_that_pulls() {
    let (Ok(root), Ok(image)) = (std::env::var("CHILD_LIBRARY"), std::env::var("CHILD_IMAGE"))
    else {
        return;
    };
    let mut config = config();
    config.registries.patience.attempts = 1;
    let image: kiln_image::oci::Reference = image.parse().unwrap();
    let setting = RegistrySetting {
        insecure: Some(std::env::var_os("CHILD_TLS").is_none()),
        mirrors: vec![],
    };
    config
        .registries
        .registries
        .insert(image.registry().to_owned(), setting);
    let library = ImageLibrary::open(root, config).unwrap();
    let request = PullRequest {
        keyring: Keyring::of_user(),
        ..PullRequest::new(image)
    };
    library.pull(&request, &Silent).unwrap();
}

fn child(root: &Path, image: &str) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "surroundings::child_that_pulls", "--nocapture"])
        .env("CHILD_LIBRARY", root)
        .env("CHILD_IMAGE", image)
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("REGISTRY_AUTH_FILE")
        .env("HOME", root.parent().unwrap());
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
}

#[test]
fn credentials_are_found_where_docker_and_podman_keep_them() {
    use std::os::unix::fs::PermissionsExt;
    needs_tools!("credentials_are_found_where_docker_and_podman_keep_them");
    let bench = Bench::new(true);
    let address = &bench.registry.address;
    let image = format!("{address}/team/app:1");
    let home = bench.directory.path();
    let try_it = |name: &str, path: Option<&Path>| {
        let mut command = child(&bench.root(name), &image);
        if let Some(path) = path {
            let paths = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{paths}", path.display()));
        }
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (succeeded, output) = try_it("none", None);
    assert!(!succeeded && output.contains("Unauthorized"), "{output}");
    // Docker.
    std::fs::create_dir_all(home.join(".docker")).unwrap();
    let docker = home.join(".docker/config.json");
    std::fs::write(
        &docker,
        format!(r#"{{"auths":{{"{address}":{{"auth":"a2lsbjpzZWNyZXQ="}}}}}}"#),
    )
    .unwrap();
    assert!(try_it("docker", None).0);
    // Podman, for a part of the registry.
    std::fs::remove_file(&docker).unwrap();
    std::fs::create_dir_all(home.join(".config/containers")).unwrap();
    let podman = home.join(".config/containers/auth.json");
    std::fs::write(
        &podman,
        format!(r#"{{"auths":{{"{address}/team":{{"auth":"a2lsbjpzZWNyZXQ="}}}}}}"#),
    )
    .unwrap();
    assert!(try_it("podman", None).0);
    std::fs::remove_file(&podman).unwrap();
    // Helpers: one that knows, one that does not, one that fails, one that is not there.
    let bin = home.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {address} ] && echo '{{\"Username\":\"kiln\",\"Secret\":\"secret\"}}'\n"
    );
    let scripts = [
        ("knows", script.as_str()),
        (
            "empty",
            "#!/bin/sh\necho credentials not found in native keychain\nexit 1\n",
        ),
        ("fails", "#!/bin/sh\necho s3cr3t; exit 1\n"),
    ];
    for (name, script) in scripts {
        let path = bin.join(format!("docker-credential-{name}"));
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, expected) in [
        ("knows", Ok(())),
        ("empty", Err("Unauthorized")),
        ("fails", Err("Helper")),
        ("absent", Err("Helper")),
    ] {
        for key in [
            format!(r#"{{"credHelpers":{{"{address}":"{name}"}}}}"#),
            format!(r#"{{"credsStore":"{name}"}}"#),
        ] {
            std::fs::write(&docker, &key).unwrap();
            let (succeeded, output) = try_it(&format!("helper-{name}"), Some(&bin));
            match expected {
                Ok(()) => assert!(succeeded, "{output}"),
                Err(word) => assert!(
                    !succeeded && output.contains(word) && !output.contains("s3cr3t"),
                    "{output}"
                ),
            }
        }
    }
}

/// Passes encrypted connections on to `upstream` wherever they want to go, to those who know the
/// password; says where it is and keeps what it was asked for.
fn tunnel(upstream: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut client, upstream, log) = (stream.unwrap(), upstream.clone(), Arc::clone(&log));
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap_or(0) == 1 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                log.lock().unwrap().push(head.clone());
                // kiln:secret
                if !head.contains("Basic a2lsbjpzZWNyZXQ=") {
                    let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
                    return client.write_all(refusal).unwrap();
                }
                let mut server = TcpStream::connect(upstream).unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    (address, asked)
}

fn output_of(command: &mut std::process::Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[test]
fn plain_registries_are_reached_by_the_proxy_of_the_environment() {
    needs_tools!("plain_registries_are_reached_by_the_proxy_of_the_environment");
    let bench = Bench::new(false);
    let proxy = Proxy::start(&bench.registry.address, |_| Act::Pass);
    let url = format!("http://{}", proxy.address);
    let url = url.as_str();
    let pull = |name: &str, image: &str, env: &[(&str, &str)]| {
        let mut command = child(&bench.root(name), image);
        output_of(command.envs(env.iter().copied()))
    };
    // Nobody else knows where that is.
    let (pulled, output) = pull("by", "registry.invalid/team/app:1", &[("HTTP_PROXY", url)]);
    assert!(pulled, "{output}");
    assert!(proxy.count("http://registry.invalid/v2/team/app/") > 3);
    let before = proxy.requests.load(Ordering::SeqCst);
    for env in [
        &[][..],
        &[("HTTPS_PROXY", url)],
        &[("http_proxy", url), ("no_proxy", "registry.invalid")],
    ] {
        let (pulled, output) = pull("not", "registry.invalid/team/app:1", env);
        assert!(!pulled && output.contains("Connect"), "{output}");
    }
    // What is on this machine is reached straight.
    let here = format!("{}/team/app:1", bench.registry.address);
    let (pulled, output) = pull("here", &here, &[("HTTP_PROXY", url)]);
    assert!(pulled, "{output}");
    assert_eq!(proxy.requests.load(Ordering::SeqCst), before);
    // Not one of ours.
    let (pulled, output) = pull(
        "socks",
        "registry.invalid/team/app:1",
        &[("ALL_PROXY", "socks5://127.0.0.1:1")],
    );
    assert!(!pulled && output.contains("Scheme("), "{output}");
}

#[test]
fn certificates_are_checked() {
    needs_tools!("certificates_are_checked");
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl")
            .args(arguments)
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    let (authority, authority_key) = (at("authority.pem"), at("authority-key.pem"));
    let (request, key, certificate, names) =
        (at("request"), at("key.pem"), at("cert.pem"), at("names"));
    std::fs::write(
        &names,
        "subjectAltName=DNS:localhost,DNS:registry.invalid\n",
    )
    .unwrap();
    let curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let made = openssl(
        &[
            &[
                "req",
                "-x509",
                "-days",
                "2",
                "-subj",
                "/CN=authority",
                "-keyout",
                &authority_key,
                "-out",
                &authority,
            ][..],
            &curve,
        ]
        .concat(),
    ) && openssl(
        &[
            &[
                "req",
                "-subj",
                "/CN=localhost",
                "-keyout",
                &key,
                "-out",
                &request,
            ][..],
            &curve,
        ]
        .concat(),
    ) && openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        &request,
        "-CA",
        &authority,
        "-CAkey",
        &authority_key,
        "-CAcreateserial",
        "-extfile",
        &names,
        "-out",
        &certificate,
    ]);
    if !made {
        return skip("certificates_are_checked", "no openssl");
    }
    let registry = Registry::start_with(&format!(
        "  tls:\n    certificate: {}\n    key: {}\n",
        certificate, key
    ));
    let mut layout = Layout::new(temp.path().join("layout"));
    let image = layout.image(
        &kiln_image::oci::Platform::host().architecture,
        "{}",
        &layers()[..1],
    );
    layout.tag(&image, "x");
    registry.push(&layout.path, "x", "app:1", &[]);
    let image = format!(
        "localhost:{}/app:1",
        registry.address.rsplit(':').next().unwrap()
    );
    let run = |name: &str, trusted: Option<&str>| {
        let mut command = child(&temp.path().join(name), &image);
        command.env("CHILD_TLS", "1").env_remove("SSL_CERT_DIR");
        match trusted {
            Some(path) => command.env("SSL_CERT_FILE", path),
            None => command.env_remove("SSL_CERT_FILE"),
        };
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (trusted, output) = run("trusted", Some(&authority));
    assert!(trusted, "{output}");
    let (untrusted, output) = run("untrusted", None);
    assert!(
        !untrusted && output.contains("InvalidCertificate"),
        "{output}"
    );
    // The same through a tunnel: the proxy's password is the proxy's, and it sees names only.
    let (proxy, asked) = tunnel(registry.address.clone());
    let through = |name: &str, password: &str, trusted: bool| {
        let mut command = child(&temp.path().join(name), "registry.invalid/app:1");
        command.env("CHILD_TLS", "1").env_remove("SSL_CERT_DIR");
        command.env("HTTPS_PROXY", format!("http://kiln:{password}@{proxy}"));
        if trusted {
            command.env("SSL_CERT_FILE", &authority);
        } else {
            command.env_remove("SSL_CERT_FILE");
        }
        output_of(&mut command)
    };
    let (pulled, output) = through("tunnel", "secret", true);
    assert!(pulled, "{output}");
    let heads = asked.lock().unwrap().join("");
    assert!(
        heads.starts_with("CONNECT registry.invalid:443 "),
        "{heads}"
    );
    assert!(!heads.contains("/v2/"), "{heads}");
    let (pulled, output) = through("wrong", "wr0ng", true);
    assert!(!pulled && output.contains("ProxyAuthRequired"), "{output}");
    assert!(!output.contains("wr0ng"), "{output}");
    let (pulled, output) = through("lying", "secret", false);
    assert!(!pulled && output.contains("InvalidCertificate"), "{output}");
}
