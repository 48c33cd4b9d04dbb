//! `freeboard sidecar`: the service alone, until it is told to end.

use crate::cli::Sidecar;
use crate::service::{self, Service};
use crate::signals::{Request, Requests};
use crate::{library, metrics, say};
use anyhow::{Context, Result, ensure};
use freeboard_config::Workload;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks at the workload file. A look is one stat.
const LOOK: Duration = Duration::from_millis(100);

/// Runs until SIGTERM or SIGINT; reads the workload file again on SIGHUP and when it has changed. The region's files
/// stay: processes that mapped them see the heartbeat stand still and go by their own group.
///
/// # Errors
/// What kept the service from starting.
pub fn sidecar(flags: &Sidecar) -> Result<()> {
    let mut file = flags.config.as_deref().map(WorkloadFile::new);
    // while signals still end it: a FIFO may have it wait
    let workload = flags.config.as_deref().map(Workload::load).transpose()?.unwrap_or_default();
    // before any thread starts, so that all of them leave these signals to the descriptor
    let mut requests = Requests::watch().context("cannot watch for signals")?;
    if let Some(dir) = &flags.install_lib {
        library::install(dir)?;
    }
    // Every container takes about ten descriptors, and the soft limit is often 1024.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let service = Arc::new(Service::start(&flags.region, &flags.socket, &workload, service::IDLE)?);
    // here alone: the launcher's command has the library, or the kernel tells of its writes
    service.sweep(&workload)?;
    let metrics = flags.metrics.map(|address| metrics::Server::start(address, service.clone())).transpose()?;
    loop {
        match (requests.wait(file.as_ref().map(|_| LOOK))?, &mut file) {
            (Some(Request::End), _) => break,
            (Some(Request::Reload), Some(file)) => file.reload(&service),
            (Some(Request::Reload), None) => {
                say("there is no workload file to read again; mend: start it with --config")
            }
            (None, Some(file)) => {
                if file.has_changed() {
                    file.reload(&service);
                }
            }
            (None, None) => {}
        }
    }
    drop(metrics);
    drop(service);
    Ok(())
}

/// What tells one state of a file from another: device, inode, size, and the times of the last change of content and of
/// anything. `None`: there is no file.
type Stamp = Option<[i64; 7]>;

/// The workload file of a sidecar that runs. It is looked for by its path, so that another file that takes its place is
/// found, also behind links: Kubernetes swaps the link `..data` that a ConfigMap's files lie behind.
struct WorkloadFile<'a> {
    path: &'a Path,
    read: Stamp,
    seen: Stamp,
}

impl<'a> WorkloadFile<'a> {
    /// A file that is about to be read.
    fn new(path: &'a Path) -> WorkloadFile<'a> {
        let now = stamp(path);
        WorkloadFile { path, read: now, seen: now }
    }

    /// Whether it is another than the one that was read, and has been for two looks: who writes it in place may not
    /// have finished, and an empty file is a valid one.
    fn has_changed(&mut self) -> bool {
        let now = stamp(self.path);
        let is_still = now == std::mem::replace(&mut self.seen, now);
        is_still && now != self.read
    }

    /// Reads it and puts it in force, or says why not.
    fn reload(&mut self, service: &Service) {
        self.read = stamp(self.path);
        match service.reload(self.load()) {
            Ok(()) => say(&format!("{}: read again, and in force", self.path.display())),
            Err(error) => say(&format!("{error:#}\nfreeboard: {}: what was in force stays", self.path.display())),
        }
    }

    /// Never waits for somebody to write, as a FIFO would have it: this thread is the one that ends the sidecar.
    fn load(&self) -> Result<Workload> {
        let is_ordinary = std::fs::metadata(self.path).map_or(true, |there| there.is_file());
        ensure!(is_ordinary, "{}: not an ordinary file by now; mend: put one there", self.path.display());
        Ok(Workload::load(self.path)?)
    }
}

fn stamp(path: &Path) -> Stamp {
    let stat = std::fs::metadata(path).ok()?;
    let whole = [stat.dev(), stat.ino(), stat.size()].map(u64::cast_signed);
    let [dev, ino, size] = whole;
    Some([dev, ino, size, stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_change_is_told_once_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("workload.toml");
        fs::write(&path, "").unwrap();
        let mut file = WorkloadFile::new(&path);
        assert!(!file.has_changed() && !file.has_changed());
        fs::write(&path, "# longer").unwrap();
        assert!(!file.has_changed(), "it may be written to still");
        fs::write(&path, "# longer still").unwrap();
        assert!(!file.has_changed());
        assert!(file.has_changed());
        file.read = file.seen;
        assert!(!file.has_changed());
        fs::remove_file(&path).unwrap();
        assert!(!file.has_changed());
        assert!(file.has_changed());
    }

    #[test]
    fn a_config_maps_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let inside = |name: &str| dir.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(inside(version)).unwrap();
            fs::write(inside(version).join("workload.toml"), "").unwrap();
        }
        symlink("..1", inside("..data")).unwrap();
        symlink("..data/workload.toml", inside("workload.toml")).unwrap();
        let path = inside("workload.toml");
        let mut file = WorkloadFile::new(&path);
        assert!(!file.has_changed());
        symlink("..2", inside("..tmp")).unwrap();
        fs::rename(inside("..tmp"), inside("..data")).unwrap();
        assert!(!file.has_changed());
        assert!(file.has_changed());
    }
}
