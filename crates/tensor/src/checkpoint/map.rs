//! Memory maps; the only unsafe code of this module, but for one call in `exchange`.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{ByteSource, Unmoved, window};
use crate::bytes::Bytes;
use crate::error::{Error, Result};

/// A read-only memory map of a whole file, which must not be cut while it is mapped; see [`survive_cut_files`].
#[derive(Debug)]
pub struct MappedFile {
    map: Arc<Map>,
    file: File,
    path: PathBuf,
    was: Unmoved,
}

/// A map, known to the handler of [`survive_cut_files`] as long as it is there.
#[derive(Debug)]
struct Map {
    known: cut::Known,
    map: memmap2::Mmap,
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Before the addresses may become somebody else's.
        self.known.forget();
    }
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|e| Error::io("open the file", &path, e))?;
        let was = Unmoved::of(&file, &path)?;
        // SAFETY: the map is read-only and private to this process. As with every memory map, cutting the file while
        // it is mapped ends the process, unless `survive_cut_files` was called; the public documentation says so.
        let map = unsafe { memmap2::Mmap::map(&file) }
            .map_err(|e| Error::io("map the file", &path, e))?;
        if map.len() as u64 != was.len() {
            return Err(Error::moved(path));
        }
        let map = Arc::new(Map { known: cut::Known::new(&map), map });
        Ok(Self { map, file, path, was })
    }

    /// All of the file; nothing is copied.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::new(self.map.clone())
    }
}

impl ByteSource for MappedFile {
    fn size(&self) -> u64 {
        self.map.map.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        Ok(self.bytes().slice(window(self, &range)))
    }

    /// Gives the resident pages back to the operating system; they are read again from the file when touched.
    fn release(&self) {
        #[cfg(unix)]
        if !self.map.map.is_empty() {
            // SAFETY: the map is a shared, read-only map of a file, so pages dropped here hold nothing that the
            // file does not; a later access faults them in again with the same contents.
            let _ = unsafe { self.map.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    fn check_unmoved(&self) -> Result<()> {
        self.was.check(&self.file, &self.path)
    }
}

/// From now on, where a mapped file is cut, what is missing reads as zeros in place of a signal (SIGBUS) that ends the
/// process; [`ByteSource::check_unmoved`] tells it. For programs: it takes the process's handler of that signal, and hands
/// on what is not about a map of ours. Does nothing on systems without that signal.
pub fn survive_cut_files() {
    cut::install();
}

#[cfg(all(unix, not(miri)))]
mod cut {
    //! The handler, and the maps that it knows.

    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

    /// Where a map begins and ends. Both are 0 where there is none.
    struct Slot {
        start: AtomicUsize,
        end: AtomicUsize,
    }

    /// Maps beyond that many are not known; a file that is cut under them ends the process as ever.
    const SLOTS: usize = 4096;
    static MAPS: [Slot; SLOTS] =
        [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0) } }; SLOTS];
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

    /// A slot that is taken.
    #[derive(Debug)]
    pub(super) struct Known(Option<usize>);

    impl Known {
        pub(super) fn new(map: &[u8]) -> Self {
            let (start, end) = (map.as_ptr() as usize, map.as_ptr() as usize + map.len());
            let free = |slot: &Slot| {
                !map.is_empty()
                    && slot
                        .start
                        .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
            };
            let taken = MAPS.iter().position(free);
            if let Some(taken) = taken {
                MAPS[taken].end.store(end, Ordering::Release);
            }
            Self(taken)
        }

        pub(super) fn forget(&mut self) {
            if let Some(taken) = self.0.take() {
                MAPS[taken].end.store(0, Ordering::Release);
                MAPS[taken].start.store(0, Ordering::Release);
            }
        }
    }

    pub(super) fn install() {
        static ONCE: OnceLock<()> = OnceLock::new();
        ONCE.get_or_init(|| {
            // SAFETY: `sysconf` has no conditions; `sigaction` is given zeroed structures of its own type, which is how
            // they are initialised, and a handler of the signature that SA_SIGINFO asks for. The old action is leaked,
            // for the handler may read it at any time.
            unsafe {
                let page = libc::sysconf(libc::_SC_PAGESIZE);
                PAGE.store(usize::try_from(page).unwrap_or(0), Ordering::Release);
                let before = Box::leak(Box::new(std::mem::zeroed::<libc::sigaction>()));
                let mut action = std::mem::zeroed::<libc::sigaction>();
                let on: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = handle;
                action.sa_sigaction = on as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut action.sa_mask);
                if libc::sigaction(libc::SIGBUS, &raw const action, before) == 0 {
                    BEFORE.store(before, Ordering::Release);
                }
            }
        });
    }

    /// Puts zeros where the file has nothing any more. Only calls that a handler may make: atomics, `mmap`, `sigaction`.
    extern "C" fn handle(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system hands over a valid `info`, of a SIGBUS.
        let address = unsafe { (*info).si_addr() } as usize;
        let page = PAGE.load(Ordering::Acquire);
        for slot in &MAPS {
            let (start, end) =
                (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Acquire));
            if page == 0 || !(start..end).contains(&address) {
                continue;
            }
            let from = address / page * page;
            // SAFETY: from here to its end the range belongs to a map of ours, which its owner keeps alive while it
            // reads it (this thread does so now), so nothing of anybody else's is replaced.
            let zeros = unsafe {
                libc::mmap(
                    from as *mut libc::c_void,
                    end - from,
                    libc::PROT_READ,
                    libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANON,
                    -1,
                    0,
                )
            };
            if zeros != libc::MAP_FAILED {
                return;
            }
        }
        // Not about a map of ours: the same access comes again, to whoever was there before.
        let before = BEFORE.load(Ordering::Acquire);
        // SAFETY: `before` is null or was filled by `sigaction`, and lives for ever; zeros are the default action.
        unsafe {
            let default = std::mem::zeroed::<libc::sigaction>();
            let action = if before.is_null() { &raw const default } else { before.cast_const() };
            libc::sigaction(libc::SIGBUS, action, ptr::null_mut());
        }
    }
}

#[cfg(not(all(unix, not(miri))))]
mod cut {
    //! No such signal here.

    #[derive(Debug)]
    pub(super) struct Known;

    impl Known {
        pub(super) fn new(_: &[u8]) -> Self {
            Self
        }

        pub(super) fn forget(&mut self) {}
    }

    pub(super) fn install() {}
}
