//! What was done to an object, and why what was not.

use serde::Serialize;
use std::fmt;

/// Why a pod or a container was left alone. As text, a word for machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The pod is for Windows.
    Windows,
    /// The pod has a container or a volume by one of our names, which no `inject` put there.
    NameTaken,
    /// The pod's own limits or requests leave no room for the sidecar's.
    LimitsTooSmall,
    /// None of the containers that were asked for is in the pod.
    NoSuchContainer,
    /// Nothing to keep usage below.
    NoMemoryLimit,
    /// LD_PRELOAD is, or may be, taken from where only the cluster can look.
    PreloadFromReference,
    /// One of the library's variables is set.
    VariableTaken,
    /// Something is mounted where the library goes.
    PathTaken,
    /// The command is the image's, and only an explicit one can be started by `freeboard run`.
    NoCommand,
}

impl Reason {
    /// What to do about it.
    pub fn mend(self) -> &'static str {
        match self {
            Reason::Windows => "leave it: Freeboard is for Linux",
            Reason::NameTaken => "rename what is called freeboard, or take it out",
            Reason::LimitsTooSmall => "raise the pod's own spec.resources",
            Reason::NoSuchContainer => "name one of spec.containers",
            Reason::NoMemoryLimit => "set resources.limits.memory, or ask with --without-limit",
            Reason::PreloadFromReference => "set LD_PRELOAD to a value in env, an empty one for none",
            Reason::VariableTaken => "take FREEBOARD_REGION and FREEBOARD_SOCKET out of env",
            Reason::PathTaken => "mount something else at /freeboard",
            Reason::NoCommand => "set command, as the image has it",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What was left alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Skip {
    /// The container; `None`: the whole pod.
    pub container: Option<String>,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.container.as_deref().unwrap_or("the pod");
        write!(f, "{what} ({}; mend: {})", self.reason, self.reason.mend())
    }
}

/// What became of a pod. Where `injected` is empty it has no Freeboard.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// The containers that have Freeboard now.
    pub injected: Vec<String>,
    /// The rest.
    pub skipped: Vec<Skip>,
}

impl Report {
    /// What was left alone, why, and the mend, in a line.
    pub fn left_alone(&self) -> String {
        self.skipped.iter().map(Skip::to_string).collect::<Vec<_>>().join(", ")
    }

    /// A pod left alone as a whole.
    pub(crate) fn skipped(reason: Reason) -> Report {
        Report { injected: Vec::new(), skipped: vec![Skip { container: None, reason }] }
    }
}
