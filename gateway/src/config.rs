//! What an operator may set about the gateway.

use fnctl_core::units::{ByteSize, Period};

/// The gateway's settings.
#[derive(Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: String,
    /// The admin API's token; without one it answers on loopback only.
    pub token: Option<String>,
    /// Most connections at once.
    pub max_connections: usize,
    /// Most time for a request's head to arrive, and for a connection to stay idle between requests.
    pub header_timeout: Period,
    /// Most time between two pieces of a request body.
    pub body_timeout: Period,
    /// Most time that a client may not read its response.
    pub write_timeout: Period,
    /// Most bytes of a request's head.
    pub max_header: ByteSize,
    /// Most bytes of an uploaded artifact.
    pub max_artifact: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            token: None,
            max_connections: 10_000,
            header_timeout: Period::secs(15),
            body_timeout: Period::secs(30),
            write_timeout: Period::secs(60),
            max_header: ByteSize::kib(64),
            max_artifact: ByteSize::mib(512),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token must not reach a log.
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}
