//! Contexts of the real `fnctl`: kept, chosen, private; and https.

use crate::cli::{program, stderr, stdout};
use fnctl_tests::{TestPlatform, root};
use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A user with a configuration folder of their own and nothing in the environment.
struct User {
    folder: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("config/fnctl/contexts.toml")
    }

    async fn run_with(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
        stdin: &str,
    ) -> Output {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env_clear()
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let stdin = stdin.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            // A command that reads no stdin may be gone already.
            let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[], "").await
    }

    /// Runs a command that has to succeed, and reads its JSON.
    async fn json(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Value {
        let output = self
            .run_with(&[arguments, &["--json"]].concat(), environment, "")
            .await;
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_added_chosen_listed_and_removed() {
    let guarded =
        TestPlatform::start_with(|config| config.gateway.token = Some("s3cret-token".into())).await;
    let open = TestPlatform::start().await;
    let (guarded, open) = (
        guarded.platform().address().to_string(),
        open.platform().address().to_string(),
    );
    let user = User::new();
    let added = user
        .run_with(
            &["context", "add", "prod", &guarded, "--token-stdin"],
            &[],
            "s3cret-token\n",
        )
        .await;
    assert_eq!(
        stdout(&added),
        "context 'prod' is added and is the current one\n",
        "{}",
        stderr(&added)
    );
    let mode = std::fs::metadata(user.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        user.run(&["context", "add", "lab", &open])
            .await
            .status
            .success()
    );

    // The current context's address and token are used; its token opens the platform.
    assert!(user.run(&["ls"]).await.status.success());
    assert_eq!(
        user.json(&["context", "show"], &[]).await["from"],
        "context 'prod'"
    );
    // A token of a context goes to no other address.
    let elsewhere = user
        .run(&["ls", "--server", &format!("http://{guarded}")])
        .await;
    assert_eq!(elsewhere.status.code(), Some(4), "{}", stderr(&elsewhere));
    let elsewhere = user
        .run_with(&["ls"], &[("FNCTL_SERVER", guarded.as_str())], "")
        .await;
    assert_eq!(elsewhere.status.code(), Some(4), "{}", stderr(&elsewhere));
    // The environment's token comes before the current context's, and after that of --context.
    let wrong = [("FNCTL_TOKEN", "wrong")];
    assert_eq!(
        user.run_with(&["ls"], &wrong, "").await.status.code(),
        Some(4)
    );
    assert_eq!(
        user.run_with(&["ls", "--context", "prod"], &wrong, "")
            .await
            .status
            .code(),
        Some(0)
    );
    for (arguments, environment, server) in [
        (vec![], vec![], &guarded),
        (
            vec!["--context", "lab"],
            vec![("FNCTL_SERVER", guarded.as_str())],
            &open,
        ),
        (vec![], vec![("FNCTL_CONTEXT", "lab")], &open),
        (
            vec![],
            vec![("FNCTL_SERVER", open.as_str()), ("FNCTL_CONTEXT", "prod")],
            &open,
        ),
        (
            vec!["--server", open.as_str()],
            vec![("FNCTL_SERVER", guarded.as_str())],
            &open,
        ),
    ] {
        let shown = user
            .json(
                &[&["context", "show"], &arguments[..]].concat(),
                &environment,
            )
            .await;
        assert_eq!(
            shown["server"],
            format!("http://{server}"),
            "{arguments:?} {environment:?}"
        );
    }

    assert!(user.run(&["context", "use", "lab"]).await.status.success());
    let listed = user.json(&["context", "ls"], &[]).await;
    assert_eq!(
        (
            &listed[0]["name"],
            &listed[0]["current"],
            &listed[1]["current"]
        ),
        (&"lab".into(), &true.into(), &false.into())
    );
    for arguments in [
        vec!["context", "ls"],
        vec!["context", "show", "prod"],
        vec!["context", "show", "prod", "-o", "yaml"],
    ] {
        let output = user.run(&arguments).await;
        assert!(
            stdout(&output).contains("prod") && !stdout(&output).contains("s3cret-token"),
            "{}",
            stdout(&output)
        );
    }
    let misspelt = user.run(&["context", "use", "pord"]).await;
    assert_eq!(misspelt.status.code(), Some(3));
    assert!(
        stderr(&misspelt).contains("did you mean 'prod'?"),
        "{}",
        stderr(&misspelt)
    );
    let misspelt = user.run(&["ls", "--context", "pord"]).await;
    assert!(
        misspelt.status.code() == Some(3) && stderr(&misspelt).contains("'prod'"),
        "{}",
        stderr(&misspelt)
    );
    assert_eq!(
        user.run(&["context", "add", "prod", &open])
            .await
            .status
            .code(),
        Some(2),
        "a name is not taken over unasked"
    );
    assert_eq!(
        user.run(&["ls", "--context", "lab", "--server", "http://x"])
            .await
            .status
            .code(),
        Some(2)
    );
    assert!(
        user.run(&["context", "rm", "lab", "prod"])
            .await
            .status
            .success()
    );
    assert_eq!(
        user.json(&["context", "ls"], &[]).await,
        Value::Array(Vec::new())
    );
    assert_eq!(
        user.json(&["context", "show"], &[]).await["from"],
        "the default"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_is_read_each_time_and_tokens_in_the_open_are_warned_of() {
    let platform =
        TestPlatform::start_with(|config| config.gateway.token = Some("from-a-file".into())).await;
    let address = platform.platform().address().to_string();
    let user = User::new();
    let file = user.folder.path().join("token");
    let path = file.to_str().unwrap();
    let missing = user
        .run(&["context", "add", "prod", &address, "--token-file", path])
        .await;
    assert_eq!(missing.status.code(), Some(1));
    std::fs::write(&file, "old\n").unwrap();
    assert!(
        user.run(&["context", "add", "prod", &address, "--token-file", path])
            .await
            .status
            .success()
    );
    assert_eq!(user.run(&["ls"]).await.status.code(), Some(4));
    std::fs::write(&file, "from-a-file\n").unwrap();
    assert!(user.run(&["ls"]).await.status.success());
    assert!(
        !std::fs::read_to_string(user.file())
            .unwrap()
            .contains("from-a-file")
    );

    let far = user
        .run_with(
            &[
                "context",
                "add",
                "far",
                "http://192.0.2.1:8080",
                "--token-stdin",
            ],
            &[],
            "abc",
        )
        .await;
    assert!(
        far.status.success() && stderr(&far).contains("unencrypted"),
        "{}",
        stderr(&far)
    );
    std::fs::set_permissions(user.file(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = user.run(&["context", "ls"]).await;
    assert!(stderr(&open).contains("chmod 600"), "{}", stderr(&open));
}

/// The certificate that its test trusts, and nothing else does.
fn certificate() -> PathBuf {
    root().join("tests/fixtures/tls/localhost.pem")
}

/// Ends TLS before a platform; returns the port.
async fn end_tls(platform: std::net::SocketAddr) -> u16 {
    let chain = CertificateDer::from_pem_file(certificate()).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificate().with_extension("key")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust the certificate leaves here.
                let Ok(mut inside) = acceptor.accept(socket).await else {
                    return;
                };
                let mut outside = TcpStream::connect(platform).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_checked_and_works_with_the_certificates_of_the_context() {
    let platform = TestPlatform::start().await;
    let user = User::new();
    let port = end_tls(platform.platform().address()).await;
    let url = format!("https://localhost:{port}");
    let distrusted = user.run(&["ls", "--server", &url]).await;
    assert_eq!(distrusted.status.code(), Some(5), "{}", stderr(&distrusted));
    assert!(
        stderr(&distrusted).contains("certificate"),
        "{}",
        stderr(&distrusted)
    );
    let ca = certificate();
    let ca = ca.to_str().unwrap();
    assert!(
        user.run(&["context", "add", "tls", &url, "--ca-file", ca])
            .await
            .status
            .success()
    );
    let listed = user.json(&["ls"], &[]).await;
    assert_eq!(listed, Value::Array(Vec::new()));
    let by_flag = user.run(&["ls", "--server", &url, "--ca-file", ca]).await;
    assert!(by_flag.status.success(), "{}", stderr(&by_flag));
    // The certificate is for another name.
    let other = user
        .run(&[
            "ls",
            "--server",
            &format!("https://127.0.0.1:{port}"),
            "--ca-file",
            ca,
        ])
        .await;
    assert_eq!(other.status.code(), Some(5), "{}", stderr(&other));
}
