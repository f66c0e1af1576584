//! How many threads are worth starting.
//!
//! Ternary products keep a core's vector units or its memory port busy, so a second hardware thread
//! of the same core brings nothing, and an efficiency core makes the others wait at every barrier.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Cores slower than this share of the fastest are left out.
const PERFORMANCE: f64 = 0.6;

/// Physical performance cores this process may use: affinity and control groups are respected. Where
/// the system does not tell, all that it offers.
pub(crate) fn default_threads() -> usize {
    let offered = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = allowed().map(|cpus| performance_cores(Path::new("/sys/devices"), &cpus));
    cores.map_or(offered, |cores| cores.clamp(1, offered))
}

/// Numbers of the CPUs the scheduler may choose for this process.
fn allowed() -> Option<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    parse_list(list)
}

/// A list as the kernel writes it, for example `0-3,8`.
fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

/// Different cores among `cpus` that are not much slower than the fastest.
fn performance_cores(devices: &Path, cpus: &[usize]) -> usize {
    let read = |path: String| fs::read_to_string(devices.join(path)).ok();
    let topology = |cpu: usize, file: &str| read(format!("system/cpu/cpu{cpu}/{file}"));
    // Intel names the performance cores; Arm gives each a capacity.
    let named = read("cpu_core/cpus".into()).and_then(|list| parse_list(&list));
    let is_named = |cpu: &usize| named.as_ref().is_none_or(|named| named.contains(cpu));
    let capacity = |cpu: usize| -> f64 {
        let text = topology(cpu, "cpu_capacity");
        text.and_then(|text| text.trim().parse().ok())
            .unwrap_or(1.0)
    };
    let cpus: Vec<usize> = cpus.iter().copied().filter(is_named).collect();
    let fastest = cpus.iter().map(|cpu| capacity(*cpu)).fold(0.0, f64::max);
    let fast = cpus
        .into_iter()
        .filter(|cpu| capacity(*cpu) >= PERFORMANCE * fastest);
    let core = |cpu| topology(cpu, "topology/thread_siblings_list").unwrap_or(cpu.to_string());
    fast.map(core).collect::<HashSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like the kernel's.
    fn devices(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn lists_of_the_kernel() {
        assert_eq!(parse_list(" 0-2,7\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_list("x"), None);
    }

    #[test]
    fn hardware_threads_of_a_core_count_once() {
        let siblings = |cpu: usize| format!("system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let paths: Vec<_> = (0..4).map(siblings).collect();
        let files = [
            (&*paths[0], "0,2"),
            (&paths[1], "1,3"),
            (&paths[2], "0,2"),
            (&paths[3], "1,3"),
        ];
        let root = devices(&files);
        assert_eq!(performance_cores(root.path(), &[0, 1, 2, 3]), 2);
        assert_eq!(performance_cores(root.path(), &[1, 3]), 1);
    }

    #[test]
    fn slow_cores_are_left_out() {
        let arm = devices(&[
            ("system/cpu/cpu0/cpu_capacity", "300\n"),
            ("system/cpu/cpu1/cpu_capacity", "870\n"),
            ("system/cpu/cpu2/cpu_capacity", "1024\n"),
        ]);
        assert_eq!(performance_cores(arm.path(), &[0, 1, 2]), 2);
        assert_eq!(
            performance_cores(arm.path(), &[0]),
            1,
            "the fastest there is"
        );
        let intel = devices(&[("cpu_core/cpus", "0-1\n")]);
        assert_eq!(performance_cores(intel.path(), &[0, 1, 2, 3]), 2);
    }

    #[test]
    fn there_is_always_one() {
        assert!(default_threads() >= 1);
    }
}
