//! The kernel suite: what is promised of real programs, tried on real cgroups, disks, kernels and containers.
//!
//! All of it is one program, so that it is linked once, and nobody waits for the last test of the program before. What
//! runs beside what is the tests' own affair: each opens a [`freeboard_tests::lab::Lab`], and waits there for its turn.
//! `SPECIFICATION.md` says which test holds which promise.

mod books;
mod cgroups;
mod coverage;
mod differential;
mod dist;
mod docker;
mod doctor;
mod errors;
mod footprint;
mod guest_v2;
mod latency;
mod library;
mod locks;
mod neighbour;
mod no_harm;
mod other_preloads;
mod overlay_and_block;
mod probe;
mod processes;
mod programs;
mod qemu_img;
mod reads;
mod reload;
mod seccomp;
mod sidecar_lost;
mod signals;
mod simulator;
mod static_programs;
mod sweep;
mod sweeper;
