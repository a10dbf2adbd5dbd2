//! Tiny guests, made of bytes: they print on the serial port and end or stay.
//!
//! The code uses only instructions that mean the same in 32-bit and 64-bit mode, so one image
//! serves QEMU (which enters at the PVH note in 32-bit mode) and Firecracker (which enters at the
//! ELF entry in 64-bit mode), and no instruction that a KVM without hardware cannot emulate.

use std::path::{Path, PathBuf};

/// Where the image is loaded: above the first MiB, as Firecracker asks for.
const BASE: u32 = 0x0100_0000;
/// What every guest prints first.
pub(crate) const GREETING: &str = "STUB-GUEST-UP\n";

/// What a guest does when it has printed its greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Spins for ever.
    Stay,
    /// Resets through the keyboard controller, as Firecracker has one.
    Reset,
    /// Resets by a triple fault, as QEMU's `microvm` takes it.
    TripleFault,
    /// Prints `.` for ever, slowly.
    Tick,
    /// Prints for ever, as fast as it can.
    Flood,
    /// Resets as soon as the keyboard controller holds a key.
    AwaitKey,
}

/// Writes the guest's image into `dir`.
pub(crate) fn write(dir: &Path, then: Then) -> PathBuf {
    let path = dir.join(format!("stub-{then:?}.elf").to_lowercase());
    std::fs::write(&path, elf(&program(then), true)).unwrap();
    path
}

/// The same without the note by which QEMU finds the entry.
pub(crate) fn write_without_note(dir: &Path) -> PathBuf {
    let path = dir.join("stub-noteless.elf");
    std::fs::write(&path, elf(&program(Then::Stay), false)).unwrap();
    path
}

fn program(then: Then) -> Vec<u8> {
    let mut code = Vec::new();
    // Patched below: mov esi, message
    code.extend([0xbe, 0, 0, 0, 0]);
    code.extend([0xba, 0xf8, 0x03, 0, 0]); // mov edx, 0x3f8
    code.extend([
        0xac, // lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz +3
        0xee, // out dx, al
        0xeb, 0xf8, // jmp lodsb
    ]);
    match then {
        Then::Stay => code.extend([0xf3, 0x90, 0xeb, 0xfc]), // pause; jmp pause
        Then::Reset => code.extend(RESET),
        Then::TripleFault => code.extend(TRIPLE_FAULT),
        Then::Tick => code.extend([
            0xb9, 0x00, 0x00, 0x01, 0x00, // mov ecx, 0x10000
            0xf3, 0x90, // pause
            0xff, 0xc9, // dec ecx
            0x75, 0xfa, // jnz pause
            0xb0, b'.', // mov al, '.'
            0xee, // out dx, al
            0xeb, 0xf0, // jmp mov ecx
        ]),
        Then::Flood => code.extend([0xb0, b'x', 0xee, 0xeb, 0xfd]), // mov al; out; jmp out
        Then::AwaitKey => {
            // in al, 0x64; test al, 1 (a byte waits); jz back
            code.extend([0xe4, 0x64, 0xa8, 0x01, 0x74, 0xfa]);
            code.extend(RESET);
        }
    }
    let message = BASE + u32::try_from(code.len()).unwrap();
    code[1..5].copy_from_slice(&message.to_le_bytes());
    code.extend(GREETING.as_bytes());
    code.push(0);
    // An interrupt table without entries, for the triple fault.
    let table = BASE + u32::try_from(code.len()).unwrap();
    code.extend([0; 10]);
    if let Some(at) = code
        .windows(5)
        .position(|bytes| bytes == [0xbe, 0xee, 0xee, 0xee, 0xee])
    {
        code[at + 1..at + 5].copy_from_slice(&table.to_le_bytes());
    }
    code
}

/// The processor runs on until the VMM has taken the reset up, so it has to wait.
const RESET: [u8; 8] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf3, 0x90, // pause
    0xeb, 0xfc, // jmp pause
];

const TRIPLE_FAULT: [u8; 9] = [
    0xbe, 0xee, 0xee, 0xee, 0xee, // mov esi, table (patched)
    0x0f, 0x01, 0x1e, // lidt [esi]
    0xcc, // int3
];

fn elf(code: &[u8], note: bool) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    const NOTE: u64 = 20;
    const CODE_AT: u64 = 0x1000;
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let mut out = Vec::new();
    out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend(2_u16.to_le_bytes()); // executable
    out.extend(62_u16.to_le_bytes()); // x86-64
    out.extend(1_u32.to_le_bytes());
    out.extend(u64::from(BASE).to_le_bytes()); // entry
    out.extend(HEADER.to_le_bytes()); // program headers
    out.extend(0_u64.to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, if note { 2 } else { 1 }, 64, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, flags: u32, at: u64, address: u64, size: u64, align: u64| {
        out.extend(kind.to_le_bytes());
        out.extend(flags.to_le_bytes());
        for word in [at, address, address, size, size, align] {
            out.extend(word.to_le_bytes());
        }
    };
    segment(1, 7, CODE_AT, BASE.into(), code.len() as u64, 0x1000);
    segment(4, 4, note_at, 0, NOTE, 4);
    out.extend(4_u32.to_le_bytes()); // name size
    out.extend(4_u32.to_le_bytes()); // content size
    out.extend(18_u32.to_le_bytes()); // XEN_ELFNOTE_PHYS32_ENTRY
    out.extend(b"Xen\0");
    out.extend(BASE.to_le_bytes());
    out.resize(usize::try_from(CODE_AT).unwrap(), 0);
    out.extend(code);
    out
}
