//! From a pod to the same pod with Freeboard in it, and back: pure functions on untyped JSON, so that fields and kinds
//! that nobody here has heard of stay as they are.
//!
//! | module | job |
//! | --- | --- |
//! | [`stream`] | text in, text out: documents of YAML or JSON, what is not touched byte by byte |
//! | [`object`] | where the pod stands in a Deployment, a CronJob, a List |
//! | [`pod`] | the patch, and its inverse |
//! | [`options`] | what may be asked for |
//! | [`report`] | what was done, and why what was not |
//! | `shape` | whether a pod is built as one, before anything looks into it |
//! | `preload` | a path into LD_PRELOAD, and out again |
//! | `quantity` | Kubernetes' quantities, compared |
//! | [`yaml`] | YAML as Kubernetes reads it |

pub mod object;
pub mod options;
pub mod pod;
mod preload;
mod quantity;
pub mod report;
mod shape;
pub mod stream;
pub mod yaml;

pub use options::{Mode, Options};
pub use report::{Reason, Report};
