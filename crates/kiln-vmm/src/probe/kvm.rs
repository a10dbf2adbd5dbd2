//! The tiny guest, by KVM's own interface: one slot of memory, one processor in 64-bit mode, six
//! instructions that every kernel uses and no software emulation in KVM knows.
//!
//! Everything here runs between fork and exec: no allocation, no lock, no panic.
#![allow(unsafe_code, reason = "KVM's ioctls and mapped memory")]

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::runner::Outcome;
use super::{Step, Symptom};

const KVMIO: u8 = 0xae;
const GET_API_VERSION: Opcode = opcode::none(KVMIO, 0x00);
const CREATE_VM: Opcode = opcode::none(KVMIO, 0x01);
const GET_VCPU_MMAP_SIZE: Opcode = opcode::none(KVMIO, 0x04);
const GET_SUPPORTED_CPUID: Opcode = opcode::read_write::<[u32; 2]>(KVMIO, 0x05);
const CREATE_VCPU: Opcode = opcode::none(KVMIO, 0x41);
const SET_USER_MEMORY_REGION: Opcode = opcode::write::<MemoryRegion>(KVMIO, 0x46);
const SET_TSS_ADDR: Opcode = opcode::none(KVMIO, 0x47);
const RUN: Opcode = opcode::none(KVMIO, 0x80);
const SET_REGS: Opcode = opcode::write::<Registers>(KVMIO, 0x82);
const GET_SREGS: Opcode = opcode::read::<SystemRegisters>(KVMIO, 0x83);
const SET_SREGS: Opcode = opcode::write::<SystemRegisters>(KVMIO, 0x84);
const SET_CPUID2: Opcode = opcode::write::<[u32; 2]>(KVMIO, 0x90);

/// The version of KVM's interface since Linux 2.6.22.
const API_VERSION: i32 = 12;
const EXIT_IO: u32 = 2;
const EXIT_SHUTDOWN: u32 = 8;
const EXIT_FAIL_ENTRY: u32 = 9;
const EXIT_INTR: u32 = 10;
const EXIT_INTERNAL_ERROR: u32 = 17;

const MEMORY_BYTES: usize = 0x8000;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PAGE_DIRECTORY: usize = 0x3000;
const CODE: usize = 0x4000;
const REPORT_PORT: u8 = 0x42;
/// `popcnt(0xfefefefe)`
const EXPECTED: u8 = 28;

const PROGRAM: [u8; 23] = [
    0x66,
    0x0f,
    0x76,
    0xc0, // pcmpeqd xmm0, xmm0: all ones
    0x66,
    0x0f,
    0xfc,
    0xc0, // paddb xmm0, xmm0: 0xfe in each byte
    0x66,
    0x0f,
    0x7e,
    0xc3, // movd ebx, xmm0
    0xf3,
    0x0f,
    0xb8,
    0xc3, // popcnt eax, ebx
    0xe6,
    REPORT_PORT, // out REPORT_PORT, al
    0xf4,        // hlt
    0xeb,
    0xfd,
    0x90,
    0x90, // jmp hlt
];

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    bytes: u64,
    host_address: u64,
}

#[repr(C)]
#[derive(Default)]
struct Registers {
    /// rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 to r15.
    general: [u64; 16],
    rip: u64,
    rflags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Default)]
struct SystemRegisters {
    cs: Segment,
    /// ds, es, fs, gs, ss.
    data: [Segment; 5],
    /// tr, ldt.
    system: [Segment; 2],
    /// gdt, idt.
    tables: [[u64; 2]; 2],
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

/// Room for what any processor has; KVM says `E2BIG` otherwise.
const CPUID_ENTRIES: usize = 256;

#[repr(C)]
struct Cpuid {
    count: u32,
    padding: u32,
    entries: [[u32; 10]; CPUID_ENTRIES],
}

/// One of KVM's calls: the argument is a number or the address of a structure.
struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: `opcode` and `argument` are what KVM's interface says for each call (see the callers);
// the result is a number, a descriptor among them, and is not interpreted here.
unsafe impl Ioctl for Call {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// A call whose argument is a number.
fn call(fd: BorrowedFd<'_>, opcode: Opcode, number: usize) -> Result<i32, Errno> {
    let argument = std::ptr::without_provenance_mut(number);
    // SAFETY: the opcodes used here take a number, so nothing is read or written through it.
    unsafe { ioctl(fd, Call { opcode, argument }) }
}

/// A call whose argument is a structure that lives across it.
fn call_with<T>(fd: BorrowedFd<'_>, opcode: Opcode, value: &mut T) -> Result<i32, Errno> {
    let argument = std::ptr::from_mut(value).cast();
    // SAFETY: `T` is the structure of that opcode, laid out as the kernel has it (`repr(C)`), and
    // exclusively borrowed for the call.
    unsafe { ioctl(fd, Call { opcode, argument }) }
}

fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Runs the guest once.
pub(super) fn run_guest() -> Outcome {
    match try_run() {
        Ok(outcome) => outcome,
        Err((step, errno)) => Outcome::Failed(step, errno.raw_os_error()),
    }
}

type StepResult<T> = Result<T, (Step, Errno)>;

fn at<T>(step: Step, result: Result<T, Errno>) -> StepResult<T> {
    result.map_err(|errno| (step, errno))
}

fn try_run() -> StepResult<Outcome> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let kvm = at(Step::Open, openat(CWD, c"/dev/kvm", flags, Mode::empty()))?;
    let version = at(Step::Open, call(kvm.as_fd(), GET_API_VERSION, 0))?;
    if version != API_VERSION {
        return Ok(Outcome::OldApi(version));
    }
    let vm = descriptor(at(Step::CreateVm, call(kvm.as_fd(), CREATE_VM, 0))?);
    at(Step::Memory, give_memory(vm.as_fd()))?;
    let vcpu = descriptor(at(Step::CreateVcpu, call(vm.as_fd(), CREATE_VCPU, 0))?);
    let state = at(Step::CreateVcpu, map_state(kvm.as_fd(), vcpu.as_fd()))?;
    at(Step::Registers, set_processor(kvm.as_fd(), vcpu.as_fd()))?;
    loop {
        match call(vcpu.as_fd(), RUN, 0) {
            Ok(_) => {}
            // A signal or a stolen processor: nothing happened.
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(errno) => return Err((Step::Run, errno)),
        }
        if let Some(outcome) = state.outcome() {
            return Ok(outcome);
        }
    }
}

/// One slot at guest address 0 with the page tables and the program.
fn give_memory(vm: BorrowedFd<'_>) -> Result<(), Errno> {
    // Intel's processors need three pages there to run real-mode code; this is where every VMM
    // puts them, above what the guest has.
    call(vm, SET_TSS_ADDR, 0xfffb_d000)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory. It is
    // never unmapped: the process ends right after.
    let memory = unsafe {
        mmap_anonymous(
            null_mut(),
            MEMORY_BYTES,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }?;
    let write = |offset: usize, value: u64| {
        // SAFETY: all offsets used below are multiples of 8 and less than `MEMORY_BYTES` - 8.
        unsafe { memory.byte_add(offset).cast::<u64>().write(value) }
    };
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    write(PML4, PDPT as u64 | PRESENT_WRITABLE);
    write(PDPT, PAGE_DIRECTORY as u64 | PRESENT_WRITABLE);
    write(PAGE_DIRECTORY, PRESENT_WRITABLE | LARGE_PAGE);
    // SAFETY: the program's bytes fit between `CODE` and the end of the mapping, which is ours.
    unsafe {
        memory
            .byte_add(CODE)
            .cast::<u8>()
            .copy_from_nonoverlapping(PROGRAM.as_ptr(), PROGRAM.len());
    }
    let mut region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_address: 0,
        bytes: MEMORY_BYTES as u64,
        host_address: memory.expose_provenance() as u64,
    };
    call_with(vm, SET_USER_MEMORY_REGION, &mut region).map(drop)
}

fn set_processor(kvm: BorrowedFd<'_>, vcpu: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut cpuid = Cpuid {
        count: CPUID_ENTRIES as u32,
        padding: 0,
        entries: [[0; 10]; CPUID_ENTRIES],
    };
    call_with(kvm, GET_SUPPORTED_CPUID, &mut cpuid)?;
    call_with(vcpu, SET_CPUID2, &mut cpuid)?;

    let mut system = SystemRegisters::default();
    call_with(vcpu, GET_SREGS, &mut system)?;
    let flat = Segment {
        limit: 0xffff_ffff,
        selector: 0x10,
        kind: 3, // data, writable, accessed
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Segment::default()
    };
    system.cs = Segment {
        selector: 0x08,
        kind: 11, // code, readable, accessed
        db: 0,
        l: 1,
        ..flat
    };
    system.data = [flat; 5];
    system.cr3 = PML4 as u64;
    // Physical address extension; OSFXSR and OSXMMEXCPT let SSE run.
    system.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
    // Protection, monitor coprocessor, extension type, numeric error, paging.
    system.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
    // Long mode enabled and active.
    system.efer = 1 << 8 | 1 << 10;
    call_with(vcpu, SET_SREGS, &mut system)?;

    let mut registers = Registers {
        rip: CODE as u64,
        // Bit 1 is always set.
        rflags: 0b10,
        ..Registers::default()
    };
    call_with(vcpu, SET_REGS, &mut registers).map(drop)
}

/// The page that KVM shares with the process: why the processor stopped.
struct State(NonNull<u8>);

/// Of `struct kvm_run`: the reason, then the particulars of each.
const EXIT_REASON: usize = 8;
const PARTICULARS: usize = 32;
/// What is read of it lies within the first two pages: the structure and the data of port calls.
const SMALLEST_STATE: usize = 8192;

fn map_state(kvm: BorrowedFd<'_>, vcpu: BorrowedFd<'_>) -> Result<State, Errno> {
    let bytes = usize::try_from(call(kvm, GET_VCPU_MMAP_SIZE, 0)?).unwrap_or(0);
    if bytes < SMALLEST_STATE {
        return Err(Errno::INVAL);
    }
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory. It is
    // never unmapped: the process ends right after.
    let state = unsafe {
        mmap(
            null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            vcpu,
            0,
        )
    }?;
    NonNull::new(state.cast()).map(State).ok_or(Errno::INVAL)
}

impl State {
    /// What the guest's last stop means; `None` to let it run on.
    fn outcome(&self) -> Option<Outcome> {
        let symptom = match self.word(EXIT_REASON) {
            EXIT_IO => return Some(self.report()),
            EXIT_INTR => return None,
            EXIT_INTERNAL_ERROR => Symptom::InternalError,
            EXIT_SHUTDOWN => Symptom::Shutdown,
            EXIT_FAIL_ENTRY => Symptom::FailedEntry,
            other => Symptom::Exit(u8::try_from(other).unwrap_or(u8::MAX)),
        };
        Some(Outcome::Ended(symptom))
    }

    /// `out REPORT_PORT, al`: direction 1, one byte, the port, once; then where the byte is.
    fn report(&self) -> Outcome {
        let direction_size_port = self.word(PARTICULARS);
        let expected = 1 | 1 << 8 | u32::from(REPORT_PORT) << 16;
        let data_at = self.word(PARTICULARS + 8) as usize;
        if direction_size_port == expected
            && data_at < SMALLEST_STATE
            && self.word(data_at & !3).to_le_bytes()[data_at & 3] == EXPECTED
        {
            Outcome::Usable
        } else {
            Outcome::Ended(Symptom::WrongResult)
        }
    }

    fn word(&self, offset: usize) -> u32 {
        // SAFETY: the callers stay within the mapping and pass multiples of 4; the kernel only
        // writes there while the processor runs.
        unsafe { self.0.byte_add(offset).cast::<u32>().read_volatile() }
    }
}
