//! What kills inference hosts: a model whose division of the least number by -1 is the processor's fault, and `kill -9`.

use super::load::Load;
use crate::bench::server::Server;
use crate::process;
use std::path::Path;
use std::time::Duration;

/// What the function with the model is called with.
pub(crate) const FATAL: (&str, &str) = (
    "breaker/nn/run?model=division",
    "x;i64;4;8,6,4,-9223372036854775808\ny;i64;4;1,1,1,-1",
);

/// `z = x / y` in whole numbers, an ONNX file (a protocol buffer) written by hand:
/// format 8, operators of version 13,
/// a graph with the node z = Div(x, y),
/// input x: four whole numbers,
/// input y,
/// output z, and the graph's name.
const DIVISION: [&[u8]; 5] = [
    b"\x08\x08B\x04\x0a\x00\x10\x0d",
    b":F\x0a\x0e\x0a\x01x\x0a\x01y\x12\x01z\x22\x03Div",
    b"Z\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x07\x12\x04\x0a\x02\x08\x04",
    b"Z\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x07\x12\x04\x0a\x02\x08\x04",
    b"b\x0f\x0a\x01z\x12\x0a\x0a\x08\x08\x07\x12\x04\x0a\x02\x08\x04\x12\x01g",
];

/// Writes the model.
pub(crate) fn write(to: &Path) -> std::io::Result<()> {
    std::fs::write(to, DIVISION.concat())
}

/// Kills an inference host of the platform now and then.
pub(crate) fn killer(load: &mut Load, platform: &Server) {
    let platform = platform.pid();
    load.repeat(Duration::from_secs(3), move |_| {
        if let Some(host) = host_of(platform) {
            process::succeeds("kill", &["-9", &host.to_string()]);
        }
    });
}

/// A process that the platform has started as an inference host.
fn host_of(platform: u32) -> Option<u32> {
    let is_host = |entry: std::fs::DirEntry| -> Option<u32> {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, behind_name) = stat.rsplit_once(") ")?;
        let parent: u32 = behind_name.split(' ').nth(1)?.parse().ok()?;
        let words = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        (parent == platform && words.contains("inference-host")).then_some(pid)
    };
    std::fs::read_dir("/proc").ok()?.flatten().find_map(is_host)
}
