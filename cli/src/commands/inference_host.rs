//! `fnctl inference-host`: what a platform starts to run ONNX Runtime in.

/// Serves the platform that started this process.
pub(crate) fn run() -> anyhow::Result<()> {
    // The platform reads these lines and puts them into its own log, where they get their time.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .init();
    fnctl_platform::serve_inference()?;
    Ok(())
}
