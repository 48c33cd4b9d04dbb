//! What the tests run beside Rust, and where Debian keeps it.

use crate::dist;
use anyhow::{Context, bail};
use freeboard_tests::{docker, guest, podman, programs};
use std::path::Path;
use std::process::Command;
use xshell::{Shell, cmd};

/// A program that the tests start, and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("cc", "gcc"),
    ("fio", "fio"),
    ("git", "git"),
    ("go", "golang-go"),
    ("javac", "openjdk-17-jdk-headless"),
    ("losetup", "mount"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("mkfs.xfs", "xfsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("musl-gcc", "musl-tools"),
    ("node", "nodejs"),
    ("perl", "perl"),
    ("python3", "python3"),
    ("qemu-aarch64-static", "qemu-user-static"),
    ("qemu-img", "qemu-utils"),
    ("rsync", "rsync"),
    ("sqlite3", "sqlite3"),
    ("tar", "tar"),
];

/// The packages that the tests need and this machine lacks.
pub fn missing_for_tests() -> Vec<&'static str> {
    let all: Vec<_> = PROGRAMS.iter().map(|&(program, _)| program).collect();
    let mut packages = missing(&all);
    for others in
        [dist::APT_PACKAGES, docker::APT_PACKAGES, podman::APT_PACKAGES, guest::APT_PACKAGES, programs::APT_PACKAGES]
    {
        packages.extend(not_installed(others));
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Those of the packages that this machine lacks. Where there is no dpkg, who needs them says so.
pub fn not_installed(packages: &[&'static str]) -> Vec<&'static str> {
    let is_missing = |package: &&&str| on_path("dpkg-query") && !is_installed(package);
    packages.iter().filter(is_missing).copied().collect()
}

/// The packages of those of the programs that this machine lacks.
pub fn missing(programs: &[&str]) -> Vec<&'static str> {
    let wanted = |program: &str| programs.contains(&program) && !on_path(program);
    PROGRAMS.iter().filter(|(program, _)| wanted(program)).map(|&(_, package)| package).collect()
}

/// Installs packages, and says so first.
///
/// # Errors
/// Where there is something to install and this is no Debian, or not root, or apt fails.
pub fn install(missing: &[&str]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let sh = Shell::new()?;
    if !on_path("apt-get") || cmd!(sh, "id -u").quiet().read()? != "0" {
        bail!("this machine lacks programs that are needed; install them: {list}");
    }
    println!("installing with apt-get: {list}");
    // slim images lack it, and without it Java's package fails
    sh.create_dir("/usr/share/man/man1")?;
    let _quiet = sh.push_env("DEBIAN_FRONTEND", "noninteractive");
    cmd!(sh, "apt-get update -qq").run()?;
    cmd!(sh, "apt-get install -y -qq --no-install-recommends {missing...}")
        .run()
        .with_context(|| format!("cannot install {list}"))
}

fn is_installed(package: &str) -> bool {
    let status = Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

/// Debian keeps mkfs and losetup in sbin, which need not be on a user's PATH.
fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into(), Path::new("/sbin").into()])
        .any(|dir| dir.join(program).is_file())
}
