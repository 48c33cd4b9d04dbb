//! A private Docker engine: its own socket, images and containers, in process and mount namespaces of its own. It
//! touches no network settings, and all of it goes when it is dropped, or with the test's process.
//!
//! The base images are made here, under the names that the `Dockerfile` uses: `debian:bookworm-slim` is Debian alone,
//! `rust:1-bookworm` has a C compiler and this machine's own Rust. Their archives are cached under
//! `FREEBOARD_DOCKER_CACHE` (`/var/tmp/freeboard-docker`), keyed by all that went into them.

use crate::lab::{Lab, run};
use anyhow::{Context, bail, ensure};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Debian packages that the host needs.
pub const APT_PACKAGES: &[&str] =
    &["ca-certificates", "docker-compose", "docker.io", "mmdebstrap", "python3-venv", "util-linux"];

/// Where Debian keeps what we run, whatever else the user's PATH has under these names.
pub(crate) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const RELEASE: &str = "bookworm";
/// What a build in the second image needs beside Rust.
const BUILD_PACKAGES: &str = "ca-certificates,gcc,libc6-dev";
/// Trusted by this machine, so also by a build that reaches the crates through its network.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const GROUPS: &str = "/sys/fs/cgroup";
/// How names of our control groups end.
const ENGINE: &str = "docker-engine";
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    process: Child,
    socket: PathBuf,
    /// Also where the client looks for its settings: none of the user's.
    dir: PathBuf,
    group: String,
}

impl Engine {
    /// Starts an engine that keeps images and containers below `data`, and gives it the base images. What is mounted
    /// on the host later, it does not see.
    ///
    /// It does not see blkio either. So containers stay in its root group, where the slow disk's rule is: what a
    /// process sends to the disk itself is measured by its own group.
    ///
    /// # Errors
    /// What this machine lacks.
    pub fn start(lab: &Lab, data: &Path) -> anyhow::Result<Engine> {
        let bases = [BaseImage::debian(), BaseImage::rust()?];
        let archives = [bases[0].archive()?, bases[1].archive()?];
        let engine = Engine::start_empty(lab, data, "umount /sys/fs/cgroup/blkio")?;
        for (base, archive) in bases.iter().zip(archives) {
            succeed(engine.docker().args(["import", "--change", "CMD [\"bash\"]"]).arg(archive).arg(base.name))?;
        }
        Ok(engine)
    }

    /// Stops, and starts as any engine starts, with every control group in sight.
    ///
    /// # Errors
    /// It does not start again.
    pub fn restart(self, lab: &Lab, data: &Path) -> anyhow::Result<Engine> {
        let dir = self.dir.clone();
        drop(self);
        fs::remove_dir_all(dir)?;
        Engine::start_empty(lab, data, "true")
    }

    /// `prepare` is done in the engine's namespaces first.
    fn start_empty(lab: &Lab, data: &Path, prepare: &str) -> anyhow::Result<Engine> {
        let dir = lab.dir().join("docker");
        fs::create_dir(&dir)?;
        let (socket, log) = (dir.join("socket"), File::create(dir.join("log"))?);
        let group = lab.name(ENGINE);
        remove_engines();
        let mut command = Command::new("setpriv");
        command.env("PATH", PATH).args(["--pdeathsig=KILL", "unshare", "--fork", "--kill-child", "--pid"]);
        command.args(["--mount", "--mount-proc", "sh", "-c"]).arg(format!("{prepare} && exec \"$@\""));
        command
            .args(["sh", "dockerd", "--bridge=none", "--iptables=false", "--ip-forward=false", "--cgroup-parent"])
            .arg(format!("/{group}"));
        command.arg("--host").arg(format!("unix://{}", socket.display())).arg("--data-root").arg(data.join("docker"));
        command.arg("--exec-root").arg(dir.join("exec")).arg("--pidfile").arg(dir.join("pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context("cannot start the engine")?;

        let mut engine = Engine { process, socket, dir, group };
        let deadline = Instant::now() + START_TIMEOUT;
        while !engine.docker().arg("version").output().context("cannot start docker")?.status.success() {
            if Instant::now() > deadline || engine.process.try_wait()?.is_some() {
                bail!("the engine does not answer; it said:\n{}", fs::read_to_string(engine.dir.join("log"))?);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(engine)
    }

    /// `docker`, with this engine.
    pub fn docker(&self) -> Command {
        self.client("docker")
    }

    /// `docker-compose`, with this engine.
    pub fn compose(&self) -> Command {
        self.client("docker-compose")
    }

    /// Builds an image from a directory with a `Dockerfile`. The build has the host's network, for its crates.
    ///
    /// # Errors
    /// With the build's output.
    pub fn build(&self, context: &Path, options: &[&str]) -> anyhow::Result<()> {
        let mut build = self.docker();
        build.args(["build", "--network", "host"]).args(options);
        let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];
        for name in proxies.into_iter().filter(|name| std::env::var_os(name).is_some()) {
            build.args(["--build-arg", name]);
        }
        succeed(build.arg(context)).map(drop)
    }

    /// The process ids, as the host counts them, of what runs in a container.
    pub fn processes(&self, container: &str) -> Vec<u32> {
        let procs = Path::new(GROUPS).join("memory").join(&self.group).join(container).join("cgroup.procs");
        fs::read_to_string(procs).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", PATH).env("DOCKER_CONFIG", &self.dir);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        command
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // With the namespace's first process everything in it dies, and its mounts are gone with the last.
        let _ = self.process.kill();
        let _ = self.process.wait();
        remove_engines();
    }
}

/// Removes the control groups of all engines: labs that run alone have one at a time, so the others' tests were killed.
fn remove_engines() {
    let deadline = Instant::now() + Duration::from_secs(10);
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_ours = |group: &PathBuf| group.to_string_lossy().ends_with(ENGINE);
    for group in below(Path::new(GROUPS)).flat_map(|hierarchy| below(&hierarchy)).filter(is_ours) {
        // what was killed may still be on its way out
        while remove_groups(&group).is_err_and(|error| error.kind() != ErrorKind::NotFound) {
            if Instant::now() > deadline {
                eprintln!("cannot remove the control group {}", group.display());
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes a control group and those below it.
pub(crate) fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_groups(&entry.path())?;
    }
    fs::remove_dir(group)
}

/// An image that others are built from.
struct BaseImage {
    name: &'static str,
    /// Arguments of mmdebstrap.
    recipe: Vec<String>,
    /// What the recipe takes from this machine.
    version: String,
}

impl BaseImage {
    fn debian() -> BaseImage {
        let recipe = ["doc", "man", "locale"].map(|share| format!("--dpkgopt=path-exclude=/usr/share/{share}/*"));
        BaseImage { name: "debian:bookworm-slim", recipe: recipe.into(), version: String::new() }
    }

    fn rust() -> anyhow::Result<BaseImage> {
        let rust = run("rustc", &["--print", "sysroot"]);
        ensure!(Path::new(CERTIFICATES).exists(), "{CERTIFICATES} is missing: install ca-certificates");
        let mut recipe = BaseImage::debian().recipe;
        recipe.push(format!("--include={BUILD_PACKAGES}"));
        recipe.push(format!("--customize-hook=cp -r {rust}/bin {rust}/lib \"$1\"/usr/local/"));
        recipe.push(format!("--customize-hook=cp {CERTIFICATES} \"$1\"{CERTIFICATES}"));
        Ok(BaseImage { name: "rust:1-bookworm", recipe, version: run("rustc", &["--version"]) })
    }

    /// The image's archive, made if it is not there.
    fn archive(&self) -> anyhow::Result<PathBuf> {
        let cache =
            std::env::var_os("FREEBOARD_DOCKER_CACHE").map_or("/var/tmp/freeboard-docker".into(), PathBuf::from);
        fs::create_dir_all(&cache).with_context(|| format!("cannot make the cache of images, {}", cache.display()))?;
        let mut hasher = DefaultHasher::new();
        (RELEASE, &self.recipe, &self.version).hash(&mut hasher);
        let kind = self.name.replace(':', "-");
        let archive = cache.join(format!("{kind}-{:016x}.tar", hasher.finish()));
        if archive.exists() {
            return Ok(archive);
        }
        // other versions of it, finished or not: nobody else is here, for the engine's lab runs alone
        for entry in fs::read_dir(&cache)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&kind) {
                fs::remove_file(entry.path())?;
            }
        }
        let unfinished = cache.join(format!("{kind}.unfinished.tar"));
        let mut debootstrap = Command::new("mmdebstrap");
        debootstrap.env("PATH", PATH).args(["--quiet", "--mode=root", "--variant=minbase"]).args(&self.recipe);
        succeed(debootstrap.arg(RELEASE).arg(&unfinished))
            .with_context(|| format!("cannot make the image {}", self.name))?;
        fs::rename(&unfinished, &archive)?;
        Ok(archive)
    }
}

/// Runs a command that must succeed, and returns its stdout, trimmed.
///
/// # Errors
/// With its output.
pub fn succeed(command: &mut Command) -> anyhow::Result<String> {
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    Ok(stdout.trim().to_owned())
}
