//! What the CPU says of itself.

/// Makers whose memory wants to be asked differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// AMD, and Hygon, whose cores are theirs.
    Amd,
    /// Intel, and everyone else.
    Other,
}

/// The maker of this CPU.
pub(crate) fn vendor() -> Vendor {
    let name = leaf(0).map_or([0; 12], |[_, b, c, d]| {
        let mut name = [0; 12];
        // The order of the registers is that of the manual.
        for (to, word) in name.chunks_exact_mut(4).zip([b, d, c]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        name
    });
    if matches!(&name, b"AuthenticAMD" | b"HygonGenuine") { Vendor::Amd } else { Vendor::Other }
}

/// The name of this CPU, where it says one: measurements without it mean little.
#[must_use]
pub fn cpu_name() -> Option<String> {
    const FIRST: u32 = 0x8000_0002;
    const LAST: u32 = 0x8000_0004;
    if leaf(0x8000_0000)?[0] < LAST {
        return None;
    }
    let words = (FIRST..=LAST).filter_map(leaf).flatten();
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|b| *b != 0).collect();
    let name = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// The registers a, b, c and d of a leaf of CPUID.
#[cfg(target_arch = "x86_64")]
fn leaf(number: u32) -> Option<[u32; 4]> {
    // SAFETY: every x86-64 CPU has the instruction. (Later compilers call it safe.)
    #[allow(unused_unsafe)]
    let found = unsafe { std::arch::x86_64::__cpuid(number) };
    Some([found.eax, found.ebx, found.ecx, found.edx])
}

#[cfg(not(target_arch = "x86_64"))]
fn leaf(_: u32) -> Option<[u32; 4]> {
    None
}
