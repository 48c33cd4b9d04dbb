//! Which system calls the kernel tells of: a classic BPF program over a call's number and arguments.

use super::call::GATE_BYTES;
use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_USER_NOTIF, c_long, sock_filter,
};
use std::mem::offset_of;

/// The architecture's name in a filter (`include/uapi/linux/audit.h`). Calls by another one's rules (32-bit programs)
/// are let through: their numbers mean other calls.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// The calls, and which of their arguments says how many bytes; `None`: only the program's memory does, or nothing.
const CALLS: [(c_long, Option<usize>); 10] = [
    (libc::SYS_write, Some(2)),
    (libc::SYS_pwrite64, Some(2)),
    (libc::SYS_sendfile, Some(3)),
    (libc::SYS_copy_file_range, Some(4)),
    (libc::SYS_splice, Some(4)),
    (libc::SYS_writev, None),
    (libc::SYS_pwritev, None),
    (libc::SYS_pwritev2, None),
    (libc::SYS_fallocate, Some(3)),
    (libc::SYS_umount2, None),
];

const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
const IF_EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const IF_AT_LEAST: u32 = BPF_JMP | BPF_JGE | BPF_K;
const IF_ANY_BIT: u32 = BPF_JMP | BPF_JSET | BPF_K;
const RETURN: u32 = BPF_RET | BPF_K;

/// The filter: tells of each of the calls with at least [`GATE_BYTES`], and allows all else.
pub fn program() -> Vec<sock_filter> {
    let step = |code: u32, k: u32, yes: u8, no: u8| sock_filter { code: code as u16, jt: yes, jf: no, k };
    let load = |at: usize| step(LOAD, at as u32, 0, 0);
    let allow = step(RETURN, SECCOMP_RET_ALLOW, 0, 0);
    let tell = step(RETURN, SECCOMP_RET_USER_NOTIF, 0, 0);

    let mut program = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        step(IF_EQUAL, ARCHITECTURE, 1, 0),
        allow,
        load(offset_of!(libc::seccomp_data, nr)),
    ];
    for (number, bytes) in CALLS {
        match bytes {
            None => program.extend([step(IF_EQUAL, number as u32, 0, 1), tell]),
            Some(argument) => {
                // little endian: the lower half comes first
                let low = offset_of!(libc::seccomp_data, args) + 8 * argument;
                program.extend([
                    step(IF_EQUAL, number as u32, 0, 6),
                    load(low + 4),
                    step(IF_ANY_BIT, u32::MAX, 2, 0),
                    load(low),
                    step(IF_AT_LEAST, GATE_BYTES as u32, 0, 1),
                    tell,
                    allow,
                ]);
            }
        }
    }
    program.push(allow);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says of a call, by running it as the kernel does.
    fn verdict(arch: u32, number: c_long, args: [u64; 6]) -> u32 {
        let data = libc::seccomp_data { nr: number as i32, arch, instruction_pointer: 0, args };
        let word = |at: usize| match at {
            _ if at == offset_of!(libc::seccomp_data, nr) => data.nr as u32,
            _ if at == offset_of!(libc::seccomp_data, arch) => data.arch,
            _ => {
                let at = at - offset_of!(libc::seccomp_data, args);
                (data.args[at / 8] >> (at % 8 * 8)) as u32
            }
        };
        let (program, mut at, mut loaded) = (program(), 0, 0);
        loop {
            let step = program[at];
            at += 1;
            let holds = match u32::from(step.code) {
                LOAD => {
                    loaded = word(step.k as usize);
                    continue;
                }
                RETURN => return step.k,
                IF_EQUAL => loaded == step.k,
                IF_AT_LEAST => loaded >= step.k,
                IF_ANY_BIT => loaded & step.k != 0,
                other => panic!("unknown instruction {other}"),
            };
            at += usize::from(if holds { step.jt } else { step.jf });
        }
    }

    #[test]
    fn large_writes_are_told_of_and_nothing_else() {
        let told = |number, args| verdict(ARCHITECTURE, number, args) == SECCOMP_RET_USER_NOTIF;
        for (number, bytes) in CALLS {
            let Some(argument) = bytes else {
                assert!(told(number, [0; 6]), "call {number}");
                continue;
            };
            for (count, want) in [(0, false), (4095, false), (4096, true), (1 << 20, true), (1 << 32, true)] {
                // the other arguments must not matter
                let mut args = [u64::MAX; 6];
                args[argument] = count;
                assert_eq!(told(number, args), want, "call {number} with {count} bytes");
            }
        }
        for number in [libc::SYS_read, libc::SYS_close, libc::SYS_execve, libc::SYS_fsync] {
            assert!(!told(number, [u64::MAX; 6]), "call {number}");
        }
        assert_eq!(verdict(0x4000_0003, libc::SYS_write, [u64::MAX; 6]), SECCOMP_RET_ALLOW, "a 32-bit program");
    }
}
