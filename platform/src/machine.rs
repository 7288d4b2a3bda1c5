//! How much memory there is for the platform, and how much of it instances and models may take when nobody says.
//!
//! Reading texts is pure; only [`memory`] looks at the machine.

use fnctl_core::ByteSize;
use fnctl_scheduler::MemoryLimit;
use std::path::Path;

/// Memory that a process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    /// In bytes.
    pub bytes: u64,
    /// Whose limit it is: `cgroup` or `this machine`.
    pub whose: &'static str,
}

/// The least of this process's memory limits; nothing where none can be found.
pub fn memory() -> Option<Memory> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let cgroup = read(Path::new("/proc/self/cgroup")).and_then(|text| cgroup_limit(&text, read));
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    least(cgroup, machine)
}

fn least(cgroup: Option<u64>, machine: Option<u64>) -> Option<Memory> {
    let of = |bytes: Option<u64>, whose| bytes.map(|bytes| Memory { bytes, whose });
    [of(cgroup, "cgroup"), of(machine, "this machine")]
        .into_iter()
        .flatten()
        .min()
}

/// What instances and models may take. `auto` is three quarters of what there is; the rest is for what the scheduler does
/// not count: compiled code, compilers at work, an inference host's own pages, buffers, the kernel's cache of artifacts.
pub fn settle(said: MemoryLimit, there: Option<Memory>) -> MemoryLimit {
    match (said, there) {
        // In whole mebibytes, for people who read it.
        (MemoryLimit::Auto, Some(there)) => ByteSize::mib((there.bytes / 4 * 3) >> 20).into(),
        (MemoryLimit::Auto, None) => MemoryLimit::Off,
        (said, _) => said,
    }
}

/// As [`settle`], on this machine; tells the log.
pub(crate) fn settle_here(said: MemoryLimit) -> MemoryLimit {
    let there = memory();
    let limit = settle(said, there);
    match (said, there) {
        (MemoryLimit::Auto, Some(there)) => tracing::info!(
            %limit,
            there = there.bytes,
            whose = there.whose,
            "memory for instances and models (scheduler.memory = auto)"
        ),
        (MemoryLimit::Auto, None) => tracing::warn!(
            "how much memory there is cannot be found out, so instances and models have no limit; set scheduler.memory"
        ),
        _ => {}
    }
    limit
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least limit of a process's cgroup and those above it: version 2, or version 1's memory controller. `membership` is
/// /proc/self/cgroup.
fn cgroup_limit(membership: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    membership
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            match controllers {
                "" => Some(("/sys/fs/cgroup", "memory.max", path)),
                _ if controllers.split(',').any(|one| one == "memory") => {
                    Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path))
                }
                _ => None,
            }
        })
        .flat_map(|(root, file, path)| {
            let inner = Path::new(path.trim_start_matches('/'));
            inner
                .ancestors()
                .map(|folder| Path::new(root).join(folder).join(file))
                .collect::<Vec<_>>()
        })
        .filter_map(|file| read(&file)?.trim().parse::<u64>().ok())
        .min()
        // Version 1 writes "no limit" as the largest multiple of a page.
        .filter(|bytes| *bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_cgroup_limit_counts() {
        let files = |path: &Path| {
            let text = match path.to_str()? {
                "/sys/fs/cgroup/a/b/memory.max" => "max\n",
                "/sys/fs/cgroup/a/memory.max" => "1000\n",
                "/sys/fs/cgroup/memory/c/memory.limit_in_bytes" => "500",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "9223372036854771712",
                _ => return None,
            };
            Some(text.to_owned())
        };
        for (membership, expected) in [
            ("0::/a/b\n", Some(1000)),
            ("5:cpu:/x\n4:memory,hugetlb:/c\n", Some(500)),
            // Both versions at once.
            ("4:memory:/c\n0::/a/b\n", Some(500)),
            ("4:memory:/elsewhere\n", None),
            // What a container sees of itself; its parents are not there.
            ("0::/../../x\n", None),
            ("0::/\n", None),
            ("nonsense", None),
        ] {
            assert_eq!(cgroup_limit(membership, files), expected, "{membership}");
        }
        let container = |path: &Path| {
            (path == Path::new("/sys/fs/cgroup/memory.max")).then(|| "2147483648\n".to_owned())
        };
        assert_eq!(cgroup_limit("0::/\n", container), Some(2 << 30));
    }

    #[test]
    fn the_machines_memory_is_read() {
        let text = "MemFree:  1 kB\nMemTotal:       16384 kB\nSwapTotal: 99 kB\n";
        assert_eq!(total(text), Some(16 << 20));
        for wrong in [
            "",
            "MemTotal: much kB",
            "MemTotal: 5",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(total(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn auto_is_three_quarters_of_the_least_and_what_was_said_stays() {
        let there = least(Some(1 << 30), Some(8 << 30));
        assert_eq!(there.map(|there| there.whose), Some("cgroup"));
        assert_eq!(
            least(None, Some(8)).map(|there| there.whose),
            Some("this machine")
        );
        let settled = |said| settle(said, there);
        assert_eq!(settled(MemoryLimit::Auto).bytes(), 768 << 20);
        assert_eq!(settled(MemoryLimit::Off), MemoryLimit::Off);
        let said = MemoryLimit::At(ByteSize::mib(9_999));
        assert_eq!(settled(said), said);
        assert_eq!(settle(MemoryLimit::Auto, None), MemoryLimit::Off);
        for text in ["auto", "0B", "64MiB"] {
            assert_eq!(text.parse::<MemoryLimit>().unwrap().to_string(), text);
        }
        assert!("much".parse::<MemoryLimit>().unwrap_err().contains("auto"));
    }

    #[test]
    fn this_machine_has_some() {
        assert!(memory().is_none_or(|there| there.bytes > 1 << 20));
    }
}
