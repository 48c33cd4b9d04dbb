//! A disk with a write limit, made of a sparse file, a loop device and a rule in the root blkio group (cgroup v1).
//! Reading is not slowed down. Goes with its [`Lab`].

use crate::MB;
use crate::lab::{self, Lab, path_str, run, throttle};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A filesystem to make on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filesystem {
    /// XFS as mkfs makes it.
    Xfs,
    /// XFS on which a copy is a copy: without reflinks, so that copy_file_range moves bytes.
    XfsWithoutReflinks,
    /// ext4 as mkfs makes it.
    Ext4,
    /// ext4 that writes all data to its journal first: sync_file_range has no effect there.
    Ext4JournalsData,
    /// btrfs as mkfs makes it.
    Btrfs,
    /// FAT32.
    Vfat,
}

impl Filesystem {
    fn make(self, device: &str) {
        match self {
            // -K: what was taken in advance stays taken
            Filesystem::Xfs => run("mkfs.xfs", &["-q", "-K", device]),
            Filesystem::XfsWithoutReflinks => run("mkfs.xfs", &["-q", "-K", "-m", "reflink=0", device]),
            Filesystem::Ext4 => run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device]),
            Filesystem::Ext4JournalsData => {
                Filesystem::Ext4.make(device);
                run("tune2fs", &["-o", "journal_data", device])
            }
            Filesystem::Btrfs => run("mkfs.btrfs", &["-q", device]),
            Filesystem::Vfat => run("mkfs.vfat", &["-F", "32", device]),
        };
    }
}

/// A slow disk.
#[derive(Debug)]
pub struct SlowDisk<'lab> {
    lab: &'lab Lab,
    device: PathBuf,
    bytes_per_second: u64,
    mount_point: Option<PathBuf>,
    is_sparse: bool,
}

impl<'lab> SlowDisk<'lab> {
    /// A disk of `size_bytes` without a filesystem.
    pub fn bare(lab: &'lab Lab, size_bytes: u64, bytes_per_second: u64) -> SlowDisk<'lab> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = lab.dir().join(format!("disk-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let device = loop_device(&file, size_bytes);
        let disk = SlowDisk { lab, device, bytes_per_second, mount_point: None, is_sparse: true };
        disk.slow_down();
        disk
    }

    /// A disk of 3 GiB with a filesystem, mounted at [`SlowDisk::dir`].
    pub fn new(lab: &'lab Lab, filesystem: Filesystem, bytes_per_second: u64) -> SlowDisk<'lab> {
        let mut disk = SlowDisk::bare(lab, 3 << 30, bytes_per_second);
        disk.full_speed();
        filesystem.make(&path_str(&disk.device));
        disk.mount_point = Some(mount(lab, &disk.device, ""));
        disk.slow_down();
        disk
    }

    /// A disk of `size_bytes` with XFS, whose memory is taken in advance, and no limit but one that a group sets for
    /// itself. On cgroup v2 a loop device charges what its file takes to the group that wrote; taken already, it is the
    /// caller's.
    pub fn filled(lab: &'lab Lab, size_bytes: u64) -> SlowDisk<'lab> {
        let mut disk = SlowDisk::bare(lab, size_bytes, 0);
        let zeros = fs::File::options().write(true).open(&disk.device).and_then(|mut device| {
            io::copy(&mut io::repeat(0).take(size_bytes), &mut device)?;
            device.sync_all()
        });
        zeros.unwrap_or_else(|error| panic!("cannot fill {}: {error}", disk.device.display()));
        disk.is_sparse = false;
        Filesystem::Xfs.make(&path_str(&disk.device));
        disk.mount_point = Some(mount(lab, &disk.device, ""));
        disk
    }

    /// Where the filesystem is mounted.
    ///
    /// # Panics
    /// On a bare disk.
    pub fn dir(&self) -> &Path {
        self.mount_point.as_deref().expect("a bare disk has no directory")
    }

    /// The block device.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Lifts the write limit.
    pub fn full_speed(&self) {
        throttle(&self.device, 0).unwrap_or_else(|error| panic!("cannot lift the limit: {error}"));
    }

    /// Puts the write limit in force.
    pub fn slow_down(&self) {
        throttle(&self.device, self.bytes_per_second).unwrap_or_else(|error| panic!("cannot set the limit: {error}"));
    }

    /// How many requests may wait in the device's queue.
    pub fn queue_length(&self, requests: u32) {
        let name = self.device.file_name().unwrap_or_default();
        let file = Path::new("/sys/block").join(name).join("queue/nr_requests");
        fs::write(&file, requests.to_string()).unwrap_or_else(|error| panic!("cannot set {}: {error}", file.display()));
    }

    /// Bytes read from the device until now.
    pub fn read_bytes(&self) -> u64 {
        let name = self.device.file_name().unwrap_or_default();
        let file = Path::new("/sys/block").join(name).join("stat");
        let stat = fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
        // Documentation/block/stat.rst: the third number is sectors of 512 bytes
        stat.split_whitespace().nth(2).and_then(|sectors| sectors.parse::<u64>().ok()).expect("no third number") * 512
    }

    /// Writes out all that is dirty and forgets what is cached, at full speed: what is read afterwards comes from the
    /// disk, and the next run starts with an idle one.
    pub fn settle(&self) {
        self.full_speed();
        if let Some(point) = &self.mount_point {
            lab::unmount(point).unwrap_or_else(|error| panic!("cannot settle the disk: {error}"));
            run("mount", &[&path_str(&self.device), &path_str(point)]);
            if self.is_sparse {
                // what was deleted gives its memory back
                run("fstrim", &[&path_str(point)]);
            }
        } else {
            run("blockdev", &["--flushbufs", &path_str(&self.device)]);
        }
        self.slow_down();
    }

    /// Writes out all that is dirty, at full speed, where the disk cannot be unmounted because something lies on top.
    pub fn write_out(&self) {
        self.full_speed();
        run("sync", &["--file-system", &path_str(self.dir())]);
        self.slow_down();
    }

    /// Mounts an overlayfs whose upper and lower directories lie on this disk and returns its directory.
    pub fn overlay(&self) -> PathBuf {
        let device = path_str(Path::new(self.device.file_name().unwrap_or_default()));
        let merged = self.lab.dir().join(format!("overlay-{device}"));
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.dir().join(name));
        for dir in [&merged, &lower, &upper, &work] {
            fs::create_dir(dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        }
        let [lower, upper, work] = [lower, upper, work].map(|dir| path_str(&dir));
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        run("mount", &["-t", "overlay", "overlay", "-o", &options, &path_str(&merged)]);
        merged
    }
}

/// A disk that promises 300 MB and has less: what is written beyond that is lost when it is written out, after the
/// write call went well. Not slow. Gone when dropped, broken as it may be by then.
#[derive(Debug)]
pub struct ThinDisk {
    store: PathBuf,
    device: PathBuf,
    mount_point: PathBuf,
}

impl ThinDisk {
    /// A disk with ext4 that holds `capacity_bytes`.
    pub fn new(lab: &Lab, capacity_bytes: u64) -> ThinDisk {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let store = lab.dir().join(format!("store-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&store).unwrap_or_else(|error| panic!("cannot make {}: {error}", store.display()));
        run("mount", &["-t", "tmpfs", "-o", &format!("size={capacity_bytes}"), "store", &path_str(&store)]);
        let device = loop_device(&store.join("disk"), 300 * MB);
        run("mkfs.ext4", &["-q", "-J", "size=4", &path_str(&device)]);
        // Barriers and journalled data would tell of the loss by other ways than fsync's.
        let mount_point = mount(lab, &device, "errors=continue,data_err=ignore,barrier=0");
        ThinDisk { store, device, mount_point }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for ThinDisk {
    fn drop(&mut self) {
        for (tool, argument) in [("umount", &self.mount_point), ("losetup", &self.device), ("umount", &self.store)] {
            let arguments = if tool == "losetup" { &["--detach"][..] } else { &[] };
            // what is left is the lab's to clean up and to complain about
            let _ = std::process::Command::new(tool).args(arguments).arg(argument).status();
        }
        let _ = fs::remove_dir(&self.mount_point);
        let _ = fs::remove_dir(&self.store);
    }
}

fn loop_device(file: &Path, size_bytes: u64) -> PathBuf {
    let sparse = fs::File::create(file).and_then(|sparse| sparse.set_len(size_bytes));
    sparse.unwrap_or_else(|error| panic!("cannot make {}: {error}", file.display()));
    PathBuf::from(run("losetup", &["--find", "--show", &path_str(file)]))
}

fn mount(lab: &Lab, device: &Path, options: &str) -> PathBuf {
    let point = lab.dir().join(device.file_name().unwrap_or_default());
    fs::create_dir(&point).unwrap_or_else(|error| panic!("cannot make {}: {error}", point.display()));
    run("mount", &["-o", &format!("defaults,{options}"), &path_str(device), &path_str(&point)]);
    point
}
