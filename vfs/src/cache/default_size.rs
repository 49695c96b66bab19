//! How much a database may take of the local disk where nobody said: a quarter of the memory limit where the disk is memory
//! (tmpfs counts against the limit), half of what is free or already the cache's elsewhere.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// Share of the memory limit on tmpfs.
const OF_MEMORY: u64 = 4;
/// Share of the free disk elsewhere.
const OF_DISK: u64 = 2;
/// Never less than this, in bytes.
const LEAST: u64 = 16 << 20;

/// The default for a database in this folder, of which `used` bytes are its own already; `None` where nothing can be found out.
pub(crate) fn default_size(folder: &Path, used: u64) -> Option<u64> {
    let disk = statfs(folder).ok()?;
    if disk.filesystem_type() == TMPFS_MAGIC {
        return Some((memory_limit()? / OF_MEMORY).max(LEAST));
    }
    let free = disk.blocks_available().saturating_mul(disk.block_size() as u64);
    Some((free.saturating_add(used) / OF_DISK).max(LEAST))
}

/// The least of the machine's memory and of what the process's control groups may use, in bytes.
fn memory_limit() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits =
        groups.lines().flat_map(limit_files).filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.chain(total.map(|kb: u64| kb * 1024)).min()
}

/// The files that may say a limit for one line of /proc/self/cgroup: of the group, and, where the group's own folder cannot be
/// seen from inside a container, of the root that is seen.
fn limit_files(line: &str) -> Vec<String> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Vec::new();
    };
    let path = path.trim_end_matches('/');
    if controllers.is_empty() {
        return vec![format!("/sys/fs/cgroup{path}/memory.max"), "/sys/fs/cgroup/memory.max".to_owned()];
    }
    let is_memory = controllers.split(',').any(|controller| controller == "memory");
    let root = "/sys/fs/cgroup/memory";
    let files = [format!("{root}{path}/memory.limit_in_bytes"), format!("{root}/memory.limit_in_bytes")];
    if is_memory { files.into() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_control_groups_are_asked() {
        assert_eq!(limit_files("0::/a/b"), ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/memory.max"]);
        let v1 = limit_files("4:cpu,memory:/x");
        assert_eq!(v1[0], "/sys/fs/cgroup/memory/x/memory.limit_in_bytes");
        assert!(limit_files("3:cpu:/x").is_empty());
    }

    #[test]
    fn there_is_a_default_wherever_the_disk_can_be_measured() {
        let dir = tempfile::tempdir().expect("a directory");
        let (empty, used) = (default_size(dir.path(), 0), default_size(dir.path(), 1 << 40));
        assert!(empty >= Some(LEAST), "{empty:?}");
        assert!(used >= empty);
    }
}
