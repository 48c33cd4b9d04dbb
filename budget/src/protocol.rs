//! What is said on the Unix socket (`SOCK_SEQPACKET`): one [`Hello`] with descriptors, one [`Welcome`] with
//! descriptors, and the connection is closed. Fixed-size structs of plain integers, in the machine's byte order: both
//! ends are on one machine.

/// First word of both messages.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FRBDSOCK");

/// From the library. Carries one descriptor: the directory of its own memory cgroup, opened `O_RDONLY`.
///
/// The sidecar takes nothing from it but what the kernel vouches for: the descriptor must be a directory on cgroup or
/// cgroup2 (fstatfs), and all numbers are read from the files in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`crate::layout::MAJOR`] that the library was built with.
    pub major: u16,
    /// [`crate::layout::MINOR`] that the library was built with.
    pub minor: u16,
    /// Process id in the library's own namespace; for people to read, not to act on.
    pub pid: u32,
}

/// From the sidecar. Carries two descriptors when `status` is [`STATUS_OK`]: the `budget` memfd (sealed against
/// writing, shrinking and growing) and the `counters` memfd of this container (sealed against shrinking and growing).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Welcome {
    /// [`MAGIC`].
    pub magic: u64,
    /// One of the `STATUS_*`.
    pub status: u32,
    /// The library's row in the containers table.
    pub container: u32,
}

/// The descriptors that follow are the region.
pub const STATUS_OK: u32 = 0;
/// The hello was not understood: another major version.
pub const STATUS_VERSION: u32 = 1;
/// The descriptor was not a memory cgroup's directory.
pub const STATUS_NOT_A_CGROUP: u32 = 2;
/// All rows of the containers table are taken.
pub const STATUS_FULL: u32 = 3;

const _: () = {
    assert!(size_of::<Hello>() == 16);
    assert!(size_of::<Welcome>() == 16);
};
