//! `cargo xtask bench`.

use clap::Args;

/// What to measure.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Seconds of load per measurement.
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u32,
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let _ = args.seconds;
    Ok(())
}
