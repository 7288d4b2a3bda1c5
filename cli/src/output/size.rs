//! Bytes as people read them.

use fnctl_core::units::ByteSize;

/// A number of bytes in the unit that leaves at most four digits before the point.
pub(crate) fn bytes(count: u64) -> String {
    const STEPS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let step = STEPS.iter().find(|(size, _)| count >= *size);
    match step {
        Some((size, unit)) => format!("{:.1}{unit}", count as f64 / *size as f64),
        None => ByteSize(count).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_fits_the_number() {
        assert_eq!(bytes(3 << 19), "1.5MiB");
        assert_eq!(bytes(12), "12B");
    }
}
