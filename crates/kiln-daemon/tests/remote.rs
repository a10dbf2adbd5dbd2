//! A daemon that listens beyond its host: never without TLS, never without a token.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panic"
)]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use kiln_api::{Client, ClientError, CreateSandbox};
use kiln_daemon::{
    Daemon, DaemonConfig, DaemonLock, HostConfig, OpenError, RemoteConfig, RemoteError,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const SOON: Duration = Duration::from_secs(30);

/// A certificate for this host and its key; `false` where nothing makes one.
fn certificate(dir: &Path) -> bool {
    let settings = dir.join("openssl.cnf");
    let text = "[req]\ndistinguished_name = dn\nx509_extensions = v3\n[dn]\n[v3]\n\
                subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\n";
    fs::write(&settings, text).unwrap();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-days", "2", "-subj", "/CN=localhost", "-config"])
        .arg(&settings)
        .arg("-keyout")
        .arg(dir.join("key.pem"))
        .arg("-out")
        .arg(dir.join("cert.pem"))
        .stderr(Stdio::null())
        .status();
    made.is_ok_and(|status| status.success())
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn config(dir: &Path, address: SocketAddr) -> DaemonConfig {
    DaemonConfig {
        host: HostConfig::new(dir.join("data"), dir.join("run")),
        remote: Some(RemoteConfig {
            address,
            certificate: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            tokens: dir.join("tokens"),
        }),
        idle_exit: None,
        drain: Duration::from_secs(5),
    }
}

#[tokio::test]
async fn a_client_elsewhere_needs_tls_and_a_token() {
    let dir = tempfile::tempdir().unwrap();
    if !certificate(dir.path()) {
        eprintln!("SKIPPED: a_client_elsewhere_needs_tls_and_a_token: no openssl");
        return;
    }
    write(&dir.path().join("tokens"), TOKEN, 0o600);
    let address = free_address();
    let lock = DaemonLock::take(&dir.path().join("run/kiln.sock"))
        .await
        .unwrap();
    let daemon = Daemon::open(config(dir.path(), address), &lock)
        .await
        .unwrap();
    let task = tokio::spawn(async move { daemon.serve().await.unwrap() });

    let roots = fs::read(dir.path().join("cert.pem")).unwrap();
    let client = |token: &str| Client::remote(&address.to_string(), &roots, token).unwrap();
    let known = client(TOKEN);
    assert_eq!(known.version().await.unwrap().api, 1);
    let created = known.create(&CreateSandbox::default()).await.unwrap();
    assert_eq!(known.list(&[]).await.unwrap().len(), 1);
    known.remove(&created.id, false).await.unwrap();
    // A stream comes through as well: it is refused by what it asks for, not by how it came.
    let mut stream = known.exec("nobody", &Default::default()).await.unwrap();
    let answer = format!("{:?}", stream.receiver.next().await.unwrap());
    assert!(answer.contains("NOT_FOUND"), "{answer}");

    for token in ["", "wrong", &TOKEN[1..]] {
        let refused = client(token).version().await.unwrap_err();
        assert_eq!(refused.report().code, "UNAUTHORIZED", "{token:?}");
    }
    let mut plain = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET /v1/version HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, plain.read_to_end(&mut answer)).await.unwrap();
    assert!(
        !String::from_utf8_lossy(&answer).contains("200"),
        "{answer:?}"
    );
    // Somebody else's certificate.
    let other = tempfile::tempdir().unwrap();
    assert!(certificate(other.path()));
    let others = fs::read(other.path().join("cert.pem")).unwrap();
    let deceived = Client::remote(&address.to_string(), &others, TOKEN).unwrap();
    let refused = deceived.version().await.unwrap_err();
    assert!(
        matches!(refused, ClientError::ConnectRemote { .. }),
        "{refused:?}"
    );

    known.shutdown().await.unwrap();
    timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_not_secret_is_refused_before_anything_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    if !certificate(dir.path()) {
        eprintln!("SKIPPED: what_is_not_secret_is_refused_before_anything_is_opened: no openssl");
        return;
    }
    let lock = DaemonLock::take(&dir.path().join("run/kiln.sock"))
        .await
        .unwrap();
    let open = async || {
        let config = config(dir.path(), free_address());
        match Daemon::open(config, &lock).await {
            Err(OpenError::Remote(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(
        matches!(open().await, RemoteError::Read { .. }),
        "there are no tokens"
    );
    write(&dir.path().join("tokens"), TOKEN, 0o644);
    assert!(matches!(open().await, RemoteError::Exposed { .. }));
    write(&dir.path().join("tokens"), TOKEN, 0o600);
    fs::set_permissions(
        dir.path().join("key.pem"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    assert!(matches!(open().await, RemoteError::Exposed { .. }));
    assert!(!dir.path().join("data").exists());
}
