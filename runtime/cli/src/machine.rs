//! What can be known of this machine. Whatever the system does not tell is `None`.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A data cache of the first core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cache {
    pub(crate) level: usize,
    pub(crate) bytes: usize,
    /// Cores that share it, as the system lists them.
    pub(crate) shared_by: String,
}

/// The maker's name of the processor.
pub(crate) fn cpu_name() -> Option<String> {
    cpu_info("model name")
}

/// Instruction sets that kernels could use.
pub(crate) fn features() -> Vec<&'static str> {
    let mut found = detected();
    // What the standard library cannot be asked about yet.
    let flags = cpu_info("flags").unwrap_or_default();
    found.extend(
        ["amx_tile", "amx_int8"]
            .into_iter()
            .filter(|name| flags.split(' ').any(|flag| flag == *name)),
    );
    found
}

macro_rules! detect {
    ($has:ident: $($feature:tt)+) => {
        [$(($feature, std::arch::$has!($feature))),+]
            .into_iter()
            .filter_map(|(name, found)| found.then_some(name))
            .collect()
    };
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Vec<&'static str> {
    detect!(is_x86_feature_detected:
        "avx2" "f16c" "fma" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512vbmi" "gfni")
}

#[cfg(target_arch = "aarch64")]
fn detected() -> Vec<&'static str> {
    detect!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "sve" "sve2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected() -> Vec<&'static str> {
    Vec::new()
}

/// Data caches, smallest first.
pub(crate) fn caches() -> Vec<Cache> {
    let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let entries = (0..).map(|i| folder.join(format!("index{i}")));
    let mut caches: Vec<_> = entries
        .take_while(|entry| entry.exists())
        .filter_map(|entry| cache(&entry))
        .collect();
    caches.sort_by_key(|cache| cache.level);
    caches
}

fn cache(entry: &Path) -> Option<Cache> {
    let read = |name| line(&entry.join(name));
    (read("type")? != "Instruction").then_some(())?;
    Some(Cache {
        level: read("level")?.parse().ok()?,
        bytes: size(&read("size")?)?,
        shared_by: read("shared_cpu_list")?,
    })
}

/// `48K`, `32M`.
fn size(text: &str) -> Option<usize> {
    let (number, shift) = match text.strip_suffix('K') {
        Some(number) => (number, 10),
        None => match text.strip_suffix('M') {
            Some(number) => (number, 20),
            None => (text, 0),
        },
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// Bytes of the largest cache.
pub(crate) fn last_level_cache() -> Option<usize> {
    caches().iter().map(|cache| cache.bytes).max()
}

/// Bytes of main memory.
pub(crate) fn total_memory() -> Option<usize> {
    memory_info("MemTotal")
}

/// Bytes that can be taken without swapping, and that no control group withholds.
pub(crate) fn available_memory() -> Option<usize> {
    let machine = memory_info("MemAvailable");
    machine.into_iter().chain(control_group_room()).min()
}

/// What of it a copy of weights may take.
pub(crate) fn spare_memory() -> Option<usize> {
    available_memory().map(|bytes| bytes / 4 * 3)
}

fn memory_info(name: &str) -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    kilobytes(text.lines(), name)
}

/// The value of `Name:   123 kB` in bytes.
fn kilobytes<'a>(mut lines: impl Iterator<Item = &'a str>, name: &str) -> Option<usize> {
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let value = value.trim().strip_suffix("kB")?.trim();
    value.parse::<usize>().ok()?.checked_mul(1024)
}

/// Control groups (version 2) this process is in, innermost first.
fn control_groups() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let root = Path::new("/sys/fs/cgroup");
    let groups = root.join(path);
    let inside = groups
        .ancestors()
        .take_while(|group| group.starts_with(root));
    inside.map(Path::to_owned).collect()
}

/// Memory the tightest control group has left. Cached files do not count: they give way.
fn control_group_room() -> Option<usize> {
    let room = |group: PathBuf| {
        let number = |name| line(&group.join(name))?.parse::<usize>().ok();
        let limit = number("memory.max")?;
        let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
        let cached = stat
            .lines()
            .find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
        let used = number("memory.current")?.saturating_sub(cached.unwrap_or(0));
        Some(limit.saturating_sub(used))
    };
    control_groups().into_iter().filter_map(room).min()
}

/// Cores' worth of time the tightest control group allows.
pub(crate) fn cpu_quota() -> Option<f64> {
    let quota = |group: PathBuf| {
        let text = line(&group.join("cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    };
    let quotas = control_groups().into_iter().filter_map(quota);
    quotas.reduce(f64::min)
}

/// Cores this process may run on, as the system lists them.
pub(crate) fn allowed_cores() -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let list = text
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(list.trim().to_owned())
}

/// Bytes of a small page.
pub(crate) fn page_bytes() -> Option<usize> {
    let text = fs::read_to_string("/proc/self/smaps").ok()?;
    kilobytes(text.lines(), "KernelPageSize")
}

/// When the system gives huge pages to memory: `always`, `madvise` (if asked) or `never`.
pub(crate) fn huge_page_mode() -> Option<String> {
    let modes = line(Path::new("/sys/kernel/mm/transparent_hugepage/enabled"))?;
    let chosen = modes.split_once('[')?.1.split_once(']')?.0;
    Some(chosen.to_owned())
}

/// Bytes of this process's memory between two addresses that are in huge pages.
pub(crate) fn huge_bytes(range: Range<*const u8>) -> Option<usize> {
    let text = fs::read_to_string("/proc/self/smaps").ok()?;
    let mut inside = false;
    let mut bytes = 0;
    for line in text.lines() {
        if let Some(addresses) = addresses(line) {
            inside = addresses.start < range.end.addr() && range.start.addr() < addresses.end;
        } else if inside {
            let size = |name| kilobytes([line].into_iter(), name).unwrap_or(0);
            bytes += size("AnonHugePages") + size("FilePmdMapped");
        }
    }
    Some(bytes)
}

/// The range at the head of an entry of `smaps`.
fn addresses(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}

fn cpu_info(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("48K"), Some(48 << 10));
        assert_eq!(size("32M"), Some(32 << 20));
        assert_eq!(size("512"), Some(512));
        assert_eq!(size("many"), None);
    }

    #[test]
    fn entries_of_the_memory_map() {
        let head = "7f36c0000000-7f36c0200000 rw-p 00000000 00:00 0 ";
        assert_eq!(addresses(head), Some(0x7f36_c000_0000..0x7f36_c020_0000));
        assert_eq!(addresses("AnonHugePages:      2048 kB"), None);
        let lines = ["Rss: 8 kB", "AnonHugePages:      2048 kB"];
        assert_eq!(kilobytes(lines.into_iter(), "AnonHugePages"), Some(2 << 20));
        assert_eq!(kilobytes(lines.into_iter(), "Swap"), None);
    }

    /// On the systems the tests run on, most is known.
    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells() {
        assert!(total_memory() >= available_memory() && available_memory() > Some(0));
        assert!(page_bytes().is_some_and(usize::is_power_of_two));
        assert!(allowed_cores().is_some_and(|list| !list.is_empty()));
    }
}
