//! What the system says about memory.
//!
//! Linux says it in `/proc` and, for a container with a limit of its own, in its control group.
//! Elsewhere nobody is asked: there an attempt to reserve is the answer.

#[cfg(target_os = "linux")]
use std::fs;

/// Bytes that can be allocated without swapping; `None` where the system does not say.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let machine = fs::read_to_string("/proc/meminfo").ok();
        let machine = machine.and_then(|text| kib_of(&text, "MemAvailable:"));
        let group = group_available();
        machine.into_iter().chain(group).min()
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Bytes of memory that this process holds now; `None` where the system does not say.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    of_process("VmRSS:")
}

/// The most bytes of memory that this process has ever held; `None` where the system does not say.
#[must_use]
pub fn peak_resident_bytes() -> Option<u64> {
    of_process("VmHWM:")
}

/// True if so many bytes can be allocated.
#[must_use]
pub fn has_room_for(bytes: u64) -> bool {
    available_bytes().map_or_else(|| can_reserve(bytes), |available| bytes <= available)
}

/// Whether the allocator finds room. Nothing is written, so a system that promises more than it has
/// says yes.
fn can_reserve(bytes: u64) -> bool {
    let bytes = usize::try_from(bytes);
    bytes.is_ok_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok())
}

#[cfg(target_os = "linux")]
fn of_process(name: &str) -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/self/status").ok()?, name)
}

#[cfg(not(target_os = "linux"))]
fn of_process(_name: &str) -> Option<u64> {
    None
}

/// What is left of the limit of the control group of a container, whose root it sees.
#[cfg(target_os = "linux")]
fn group_available() -> Option<u64> {
    let number = |name: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let limit = number("memory.max")?;
    let used = number("memory.current")?;
    // Files that were read count as used, and give way.
    let statistics = fs::read_to_string("/sys/fs/cgroup/memory.stat").ok()?;
    let mut words = statistics.lines().filter_map(|line| line.split_once(' '));
    let inactive = words.find(|(name, _)| *name == "inactive_file");
    let files = inactive
        .and_then(|(_, bytes)| bytes.parse().ok())
        .unwrap_or(0);
    Some((limit + files).saturating_sub(used))
}

/// The line `name 123 kB`, in bytes.
#[cfg(target_os = "linux")]
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_room_is_found_and_not_all_room() {
        assert!(has_room_for(1 << 20) && can_reserve(1 << 20));
        assert!(!has_room_for(u64::MAX / 2) && !can_reserve(u64::MAX / 2));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_says_what_is_held() {
        let text = "MemFree:  12 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(kib_of(text, "MemAvailable:"), Some(2 << 20));
        assert_eq!(kib_of(text, "Nothing:"), None);
        let (now, peak) = (resident_bytes().unwrap(), peak_resident_bytes().unwrap());
        assert!(now > 1 << 16 && now <= peak);
        assert!(available_bytes().unwrap() > 1 << 20);
    }
}
