//! The birth of a process, at the least cost.
//!
//! The child is born in its control group (`CLONE_INTO_CGROUP`, Linux 5.7): moving it there
//! afterwards costs more than all else between fork and exec. The parent waits until the child
//! has executed its program or given up (`CLONE_VFORK`), so that an error needs no pipe, and
//! where that is safe the child borrows the parent's memory until then (`CLONE_VM`), so that no
//! page tables are copied. Older kernels get a plain fork of the same child.
#![allow(
    unsafe_code,
    reason = "no library clones into a control group, or onto a stack of its own"
)]

use std::cell::OnceCell;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use super::child::{Failure, LaunchError, Prepared, Script, child};

thread_local! {
    static STAGE: OnceCell<Stage> = const { OnceCell::new() };
}

/// Calls `act` with this thread's stage, which is made at the first call and kept.
pub(super) fn on_stage<T>(
    act: impl FnOnce(&Stage) -> Result<T, LaunchError>,
) -> Result<T, LaunchError> {
    STAGE.with(|stage| {
        if let Some(stage) = stage.get() {
            return act(stage);
        }
        let new = Stage::new().map_err(LaunchError::Setup)?;
        act(stage.get_or_init(|| new))
    })
}

/// Where children run until they execute their program: a stack, and below it what they report.
/// Shared memory, so that a report arrives whether or not the child has borrowed all the rest.
pub(super) struct Stage {
    memory: NonNull<u8>,
}

/// Debug builds need most: some kilobytes.
const STAGE_SIZE: usize = 128 * 1024;

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no child is on it: each is waited for.
        unsafe {
            libc::munmap(self.memory.as_ptr().cast(), STAGE_SIZE);
        }
    }
}

/// `struct clone_args` of `linux/sched.h`, as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

impl Stage {
    fn new() -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                STAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(memory.cast::<u8>()) {
            Some(memory) if memory.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { memory }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn report(&self) -> &AtomicU32 {
        // SAFETY: the mapping is there as long as `self`, begins on a page, and its first word is
        // used for nothing else.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().cast()) }
    }

    /// Starts a process; where the kernel cannot do it as we like it best, by a fork.
    pub(super) fn spawn(&self, launch: &Prepared) -> Result<Pid, LaunchError> {
        self.perform(|| match self.born_in_group(launch) {
            Err(Errno::NOSYS | Errno::INVAL | Errno::TOOBIG | Errno::PERM) => self.forked(launch),
            result => result,
        })
    }

    #[cfg(test)]
    pub(super) fn spawn_by_fork(&self, launch: &Prepared) -> Result<Pid, LaunchError> {
        self.perform(|| self.forked(launch))
    }

    fn perform(&self, birth: impl FnOnce() -> Result<Pid, Errno>) -> Result<Pid, LaunchError> {
        self.report().store(0, Ordering::Relaxed);
        let mask = SignalMask::all_blocked();
        let child = birth();
        drop(mask);
        let pid = child.map_err(|error| LaunchError::Setup(error.into()))?;
        match Failure::reported(self.report().load(Ordering::Relaxed)) {
            None => Ok(pid),
            Some(failure) => {
                // It is on its way out, and nobody is to hear of it.
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                Err(failure.into())
            }
        }
    }

    fn born_in_group(&self, launch: &Prepared) -> Result<Pid, Errno> {
        let mut flags = CLONE_VFORK | CLONE_CLEAR_SIGHAND;
        if launch.may_borrow_memory() {
            flags |= CLONE_VM;
        }
        let mut args = CloneArgs {
            exit_signal: libc::SIGCHLD as u64,
            stack: self.memory.as_ptr() as u64,
            stack_size: STAGE_SIZE as u64,
            ..CloneArgs::default()
        };
        if let Some(group) = &launch.launch.cgroup {
            flags |= CLONE_INTO_CGROUP;
            args.cgroup = group.as_raw_fd() as u64;
        }
        args.flags = flags;
        let script = self.script(launch, false);
        // SAFETY: the arguments are a whole `clone_args`, and give the child this stage's stack.
        // Handlers of ours cannot run in it: they are cleared.
        let result = unsafe {
            clone_to_child(
                libc::SYS_clone3,
                std::ptr::from_ref(&args) as usize,
                size_of::<CloneArgs>(),
                &script,
            )
        };
        started(result)
    }

    /// In its own memory: signal handlers of ours are still there in it.
    fn forked(&self, launch: &Prepared) -> Result<Pid, Errno> {
        let script = self.script(launch, true);
        let flags = CLONE_VFORK as usize | libc::SIGCHLD as usize;
        // SAFETY: the address is the end of this stage's stack, aligned to a page.
        let result = unsafe {
            let top = self.memory.add(STAGE_SIZE).as_ptr() as usize;
            clone_to_child(libc::SYS_clone, flags, top, &script)
        };
        started(result)
    }

    fn script<'a>(&'a self, launch: &'a Prepared, joins: bool) -> Script<'a> {
        Script {
            launch,
            report: self.report(),
            joins,
        }
    }
}

fn started(result: isize) -> Result<Pid, Errno> {
    // A negative result is an error's number and no number of a process, not even a wrong one.
    let pid = u32::try_from(result)
        .ok()
        .and_then(|pid| i32::try_from(pid).ok());
    match pid.and_then(Pid::from_raw) {
        Some(pid) => Ok(pid),
        None => Err(Errno::from_raw_os_error(-(result as i32))),
    }
}

/// Makes the system call `number`, a clone, whose child goes to [`child`] and never comes back.
///
/// # Safety
/// The arguments must make a process with a stack of its own, not a thread, and must suspend the
/// parent meanwhile (`CLONE_VFORK`), which has `script` borrowed to the child.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_to_child(
    number: libc::c_long,
    first: usize,
    second: usize,
    script: &Script,
) -> isize {
    let result: isize;
    // SAFETY: to the parent this is a system call like any other. The child leaves on its own
    // stack, which is aligned, by a call of the C convention, and does not touch the parent's.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") number as isize => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") 0_usize,
            in("r10") 0_usize,
            in("r8") 0_usize,
            in("r12") std::ptr::from_ref(script),
            in("r13") child as extern "C" fn(&Script) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn clone_to_child(
    number: libc::c_long,
    first: usize,
    second: usize,
    script: &Script,
) -> isize {
    let result: isize;
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            in("x8") number,
            inlateout("x0") first as isize => result,
            in("x1") second,
            in("x2") 0_usize,
            in("x3") 0_usize,
            in("x4") 0_usize,
            in("x20") std::ptr::from_ref(script),
            in("x21") child as extern "C" fn(&Script) -> !,
        );
    }
    result
}

/// Keeps signals away from a child that has our handlers or our memory.
struct SignalMask(libc::sigset_t);

impl SignalMask {
    fn all_blocked() -> Self {
        // SAFETY: both sets are ours, and filled or written whole.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was there before.
        unsafe {
            libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_clone_is_an_error() {
        assert_eq!(started(-11), Err(Errno::AGAIN));
        assert_eq!(started(42).map(Pid::as_raw_pid), Ok(42));
    }
}
