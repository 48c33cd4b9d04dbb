//! A throw-away guest with its own kernel, so that the suite also runs where the host's kernel is another, and on
//! cgroup v2 where the host has v1.
//!
//! One run of mmdebstrap makes a Debian root file system with everything in it: what the guest's programs need, the
//! kernels, and qemu, which the host runs from there (chroot). So the host needs [`APT_PACKAGES`] alone, and its own
//! qemu's version does not matter. The result is cached under `FREEBOARD_GUEST_CACHE` (`/var/tmp/freeboard-guest`),
//! keyed by all that went into it; another key replaces it.
//!
//! The guest has no network and no KVM: qemu translates (TCG), which works in any virtual machine, but makes everything
//! slow. Compare only times of one boot.

use crate::lab::Lab;
use anyhow::{Context, bail, ensure};
use std::env;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// Debian packages that the host needs.
pub const APT_PACKAGES: &[&str] = &["e2fsprogs", "mmdebstrap", "tar", "util-linux", "xz-utils", "zstd"];

/// Debian packages of the guest, and of the chroot that qemu runs in.
const ROOT_PACKAGES: &[&str] = &[
    "busybox-static",
    "cpio",
    "dosfstools",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "nfs-kernel-server",
    "procps",
    "qemu-system-x86",
    "qemu-utils",
    "udftools",
    "util-linux",
    "xfsprogs",
    "xz-utils",
    "zstd",
];

const MIRROR: &str = "http://deb.debian.org/debian";
const RELEASE: &str = "bookworm";

/// bookworm's own qemu (7.2) translates newer kernels wrongly: Linux 6.12 crashes on its way up.
const APT_PREFERENCES: &str = "Package: src:qemu seabios\nPin: release n=bookworm-backports\nPin-Priority: 500";

/// Less what is dear to translate: with these four features a kernel takes 12 s to copy 500 MiB within tmpfs, without
/// them 3 s, and only then can NFS keep a disk of 30 MB/s busy. One processor, for the same reason.
const CPU: &str = "max,erms=off,fsrm=off,la57=off,smap=off";

const KERNELS_HOOK: &str = include_str!("../guest/kernels");
const INITRD_INIT: &str = include_str!("../guest/initrd-init");
const INIT: &str = include_str!("../guest/init");

/// What `init` prints before it starts the script: from here on a failure is not qemu's.
const UP: &str = "guest: up";

/// The kernels of a guest: Debian's, for virtual machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Linux 6.1: no cachestat; the only one with a cgroup v1 memory controller.
    V6_1,
    /// Linux 6.12.
    V6_12,
    /// The newest that Debian backports.
    Newest,
}

impl Kernel {
    const ALL: [Kernel; 3] = [Kernel::V6_1, Kernel::V6_12, Kernel::Newest];

    fn name(self) -> &'static str {
        match self {
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
            Kernel::Newest => "newest",
        }
    }

    /// The Debian suite whose current kernel it is.
    fn suite(self) -> &'static str {
        match self {
            Kernel::V6_1 => RELEASE,
            Kernel::V6_12 => "bookworm-backports",
            Kernel::Newest => "trixie-backports",
        }
    }
}

/// The control groups that the guest mounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hierarchy {
    /// `/sys/fs/cgroup/memory`, `blkio` and `cpu`; [`Kernel::V6_1`] only.
    V1,
    /// `/sys/fs/cgroup`, with all processes in the group `init`.
    V2,
}

/// A disk of the guest, empty but for its file system. The first is `/dev/vdd`, the next `/dev/vde`.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Made with `mkfs.<filesystem>`: ext4, xfs, vfat or udf.
    pub filesystem: &'static str,
    /// Size in MiB; takes space on the host only as it is written.
    pub size_mib: u64,
    /// Writes are held to this, by qemu.
    pub write_bytes_per_second: u64,
}

/// A guest to be.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its control groups.
    pub hierarchy: Hierarchy,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its slow disks.
    pub disks: Vec<Disk>,
    /// Host files that it finds in `/in` under their own names.
    pub files: Vec<PathBuf>,
    /// It is switched off after this long.
    pub timeout: Duration,
}

/// What a guest left behind.
#[derive(Debug)]
pub struct Outcome {
    /// The script's; `None` where the guest crashed or was switched off.
    pub exit_code: Option<i32>,
    /// What stood in `/out`. Goes with the lab.
    pub out: PathBuf,
    /// What the kernel and the script printed.
    pub console: String,
}

impl Guest {
    /// Boots, runs `script` (a program with a `#!` line) in `/in`, and switches off: one guest per lab. Takes 6 s and
    /// the script's time; the first time on a machine a minute more, for the downloads.
    ///
    /// # Errors
    /// Where this machine cannot make or boot a guest. What goes wrong after that is in the [`Outcome`].
    pub fn run(&self, lab: &Lab, script: &str) -> anyhow::Result<Outcome> {
        let image = Image::get()?;
        let file = |name: &str| lab.dir().join(name);
        self.pack(lab, script)?;
        File::create(file("out.tar"))?.set_len(64 << 20)?;

        let mut qemu = image.chroot(lab, "qemu-system-x86_64");
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-m", &format!("{}M", self.memory_mib)]);
        qemu.args(["-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot"]);
        qemu.args(["-serial", "file:/mnt/console"]);
        let boot = format!("/boot/{}", self.kernel.name());
        qemu.args(["-kernel", &format!("{boot}/vmlinuz"), "-initrd", &format!("{boot}/initrd")]);
        let hierarchy = match self.hierarchy {
            Hierarchy::V1 => "v1",
            Hierarchy::V2 => "v2",
        };
        // what the kernel does not know becomes the environment of the first process
        qemu.arg("-append").arg(format!(
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=1 hierarchy={hierarchy}"
        ));
        drive(&mut qemu, "/root.img", "snapshot=on,cache=unsafe");
        drive(&mut qemu, "/mnt/out.tar", "cache=unsafe");
        drive(&mut qemu, "/mnt/in.tar", "readonly=on");
        for (index, disk) in self.disks.iter().enumerate() {
            let name = format!("disk{index}");
            File::create(file(&name))?.set_len(disk.size_mib << 20)?;
            let inside = format!("/mnt/{name}");
            succeed(image.chroot(lab, &format!("mkfs.{}", disk.filesystem)).arg(&inside))?;
            drive(&mut qemu, &inside, &format!("cache=unsafe,throttling.bps-write={}", disk.write_bytes_per_second));
        }

        let status = finish(qemu, self.timeout)?;
        let console = fs::read(file("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        ensure!(console.contains(UP), "the guest did not come up (qemu: {status}):\n{console}");

        let out = file("out");
        fs::create_dir(&out)?;
        // a guest that was cut off left no archive
        let exit_code = succeed(Command::new("tar").arg("-xf").arg(file("out.tar")).arg("-C").arg(&out))
            .ok()
            .and_then(|()| fs::read_to_string(out.join("exit-code")).ok())
            .and_then(|code| code.trim().parse().ok());
        Ok(Outcome { exit_code, out, console })
    }

    /// Writes the archive that becomes the guest's `/in`.
    fn pack(&self, lab: &Lab, script: &str) -> anyhow::Result<()> {
        let own = lab.dir().join("own");
        fs::create_dir(&own)?;
        fs::write(own.join("init"), INIT)?;
        fs::write(own.join("script"), script)?;
        let mut tar = Command::new("tar");
        tar.args(["--mode=a+rx", "-cf"]).arg(lab.dir().join("in.tar")).arg("-C").arg(&own).args(["init", "script"]);
        for file in &self.files {
            let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
                bail!("{} is no file that could be handed to a guest", file.display());
            };
            tar.arg("-C").arg(fs::canonicalize(directory).with_context(|| format!("{}", file.display()))?).arg(name);
        }
        succeed(&mut tar)
    }
}

fn drive(qemu: &mut Command, file: &str, options: &str) {
    qemu.arg("-drive").arg(format!("if=virtio,format=raw,file={file},{options}"));
}

/// The cached root file system. Holds the cache's lock, so that nobody replaces it meanwhile.
struct Image {
    root: PathBuf,
    _lock: File,
}

impl Image {
    fn get() -> anyhow::Result<Image> {
        let cache = env::var_os("FREEBOARD_GUEST_CACHE").map_or("/var/tmp/freeboard-guest".into(), PathBuf::from);
        fs::create_dir_all(&cache).with_context(|| format!("cannot make the cache of guests, {}", cache.display()))?;
        let root = cache.join(Image::key());
        let lock = File::create(cache.join("lock"))?;
        loop {
            lock.lock_shared()?;
            if root.exists() {
                return Ok(Image { root, _lock: lock });
            }
            lock.unlock()?;
            lock.lock()?;
            // somebody else may have been faster
            if !root.exists() {
                Image::build(&cache, &root).context("cannot make the root file system of the guest")?;
            }
            lock.unlock()?;
        }
    }

    fn key() -> String {
        let mut hasher = DefaultHasher::new();
        (ROOT_PACKAGES, MIRROR, RELEASE, APT_PREFERENCES, Kernel::ALL.map(Kernel::suite)).hash(&mut hasher);
        (KERNELS_HOOK, INITRD_INIT).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Replaces all that is in the cache.
    fn build(cache: &Path, root: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(cache)? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            }
        }
        let work = cache.join("build");
        fs::create_dir(&work)?;
        let (hook, initrd_init, tree) = (work.join("kernels"), work.join("initrd-init"), work.join("root"));
        fs::write(&hook, KERNELS_HOOK)?;
        fs::write(&initrd_init, INITRD_INIT)?;
        let kernels = Kernel::ALL.map(|kernel| format!("{}={}", kernel.name(), kernel.suite())).join(" ");
        let mut debootstrap = Command::new("mmdebstrap");
        debootstrap.args(["--mode=root", "--variant=minbase"]);
        debootstrap.args(["doc", "man", "locale"].map(|share| format!("--dpkgopt=path-exclude=/usr/share/{share}/*")));
        debootstrap.arg(format!("--include={}", ROOT_PACKAGES.join(",")));
        debootstrap.arg(format!("--setup-hook=echo '{APT_PREFERENCES}' >\"$1\"/etc/apt/preferences.d/guest"));
        debootstrap.arg(format!("--customize-hook=sh {} \"$1\" {} {kernels}", hook.display(), initrd_init.display()));
        debootstrap.arg(RELEASE).arg(&tree);
        debootstrap.args(Kernel::ALL.map(|kernel| format!("deb {MIRROR} {} main", kernel.suite())));
        succeed(&mut debootstrap)?;
        let image = work.join("root.img");
        // no journal: every guest throws its writes away
        succeed(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
                .args([&tree, &image])
                .arg("3G"),
        )?;
        fs::rename(&image, tree.join("root.img"))?;
        fs::rename(&tree, root)?;
        Ok(())
    }

    /// A program of the root file system, with the lab's directory at `/mnt`. It dies with the thread that started it,
    /// whatever becomes of this process.
    fn chroot(&self, lab: &Lab, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("TMPDIR", "/tmp");
        command.args(["--pdeathsig=KILL", "unshare", "--mount", "sh", "-c"]);
        command.args([r#"mount --bind "$1" "$2/mnt" && shift && exec chroot "$@""#, "sh"]);
        command.arg(lab.dir()).arg(&self.root).arg(program);
        command
    }
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_owned();
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Waits for a command, and ends it where it takes too long.
fn finish(mut command: Command, timeout: Duration) -> anyhow::Result<ExitStatus> {
    let end = Instant::now() + timeout;
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            child.kill()?;
            return Ok(child.wait()?);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
