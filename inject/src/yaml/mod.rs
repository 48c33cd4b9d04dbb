//! YAML as Kubernetes reads it: the scalars of YAML 1.1 as its Go library (sigs.k8s.io/yaml) takes them, so that a plain
//! `0644` is the number 420 and a quoted one stays text; anchors and merge keys are resolved. What is written means the
//! same to readers of YAML 1.1 and 1.2.

mod read;
mod scalar;
mod write;

pub use read::document;
pub use write::write;
