//! Trace files as they lie on a disk: one behind the other, packed with gzip or not.

use anyhow::Context;
use fnctl_platform::simulator::trace::Trace;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

/// How a file packed with gzip begins (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Reads traces, the second behind the end of the first: day files in order. `seed` decides where in their minute calls
/// come.
pub(crate) fn read(paths: &[PathBuf], seed: u64) -> anyhow::Result<Trace> {
    let mut trace = Trace::new(seed);
    for path in paths {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        let packed = file
            .fill_buf()
            .with_context(|| format!("cannot read {}", path.display()))?
            .starts_with(&GZIP);
        // What a packed file unpacks to is bounded by the trace: a line, the functions, the entries.
        let read = if packed {
            let unpacked = flate2::bufread::MultiGzDecoder::new(file);
            trace.read(BufReader::with_capacity(1 << 20, unpacked))
        } else {
            trace.read(file)
        };
        read.with_context(|| format!("{} is no trace", path.display()))?;
    }
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn day(count: u32) -> String {
        format!("HashOwner,HashApp,HashFunction,Trigger,1,2\no,a,f,queue,{count},0\n")
    }

    #[test]
    fn days_follow_each_other_packed_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder
            .path()
            .join("invocations_per_function_md.anon.d01.csv");
        std::fs::write(&plain, day(3)).unwrap();
        let packed = folder
            .path()
            .join("invocations_per_function_md.anon.d02.csv.gz");
        let mut file = flate2::write::GzEncoder::new(
            File::create(&packed).unwrap(),
            flate2::Compression::fast(),
        );
        file.write_all(day(4).as_bytes()).unwrap();
        file.finish().unwrap();
        let trace = read(&[plain.clone(), packed.clone()], 1).unwrap();
        assert_eq!((trace.invocations(), trace.functions().len()), (7, 1));
        assert_eq!(trace.seconds(), 240.0);
        let minutes: Vec<u64> = trace.calls().map(|call| call.at.0 / 60_000_000).collect();
        assert_eq!(minutes, [0, 0, 0, 2, 2, 2, 2]);
        // One that is cut short is named, and so is one that is not there.
        let bytes = std::fs::read(&packed).unwrap();
        std::fs::write(&packed, bytes.get(..bytes.len() - 12).unwrap()).unwrap();
        let problem = format!("{:#}", read(&[plain, packed], 1).unwrap_err());
        assert!(problem.contains("d02.csv.gz is no trace"), "{problem}");
        let problem = format!("{:#}", read(&["nowhere.csv".into()], 1).unwrap_err());
        assert!(problem.contains("cannot open nowhere.csv"), "{problem}");
    }
}
