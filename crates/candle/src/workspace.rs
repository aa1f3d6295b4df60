use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::Result;
use tensorpress_tensor::Scratch;
use tensorpress_tensor::linalg::Par;

use crate::error::message;

/// How many threads products may use, and the memory that they leave to those that come after. Clones share it; so do all
/// layers that were given the same.
///
/// ```
/// use tensorpress_candle::{Par, Workspace};
///
/// let alone = Workspace::new(Par::Seq);
/// assert_eq!(alone.par(), Par::Seq);
/// assert_eq!(Workspace::default().par(), Par::Rayon);
/// ```
#[derive(Clone)]
pub struct Workspace(Arc<Shared>);

struct Shared {
    par: Par,
    /// As many as there were calls at the same time.
    free: Mutex<Vec<Buffers>>,
}

/// What one call works with.
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) scratch: Scratch,
    /// Inputs and outputs as f32, where the tensors are something else.
    pub(crate) x: Vec<f32>,
    pub(crate) y: Vec<f32>,
}

static OF_THE_PROCESS: LazyLock<Workspace> = LazyLock::new(|| Workspace::new(Par::Rayon));

impl Workspace {
    /// One of its own, whose products run with `par`: no result depends on it.
    #[must_use]
    pub fn new(par: Par) -> Self {
        Self(Arc::new(Shared { par, free: Mutex::default() }))
    }

    /// Parallelism of the products.
    #[must_use]
    pub fn par(&self) -> Par {
        self.0.par
    }

    /// Calls `f` with buffers that nobody else has.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Buffers) -> R) -> R {
        let free = || self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let found = free().pop();
        let mut buffers = found.unwrap_or_else(|| Buffers {
            scratch: Scratch::new(self.0.par),
            x: Vec::new(),
            y: Vec::new(),
        });
        let result = f(&mut buffers);
        free().push(buffers);
        result
    }
}

impl Default for Workspace {
    /// That of the process, on the threads of the current rayon pool, as candle's own products are.
    fn default() -> Self {
        OF_THE_PROCESS.clone()
    }
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace").field("par", &self.0.par).finish_non_exhaustive()
    }
}

/// So many values of a buffer, contents unspecified: an error where there is no memory for them, as a tensor that is
/// broadcast may claim any number.
pub(crate) fn claim(buffer: &mut Vec<f32>, len: usize) -> Result<&mut [f32]> {
    if len > buffer.len() {
        let more = len - buffer.len();
        let none = |_| message(format!("there is no memory for {len} values"));
        buffer.try_reserve_exact(more).map_err(none)?;
        buffer.resize(len, 0.0);
    }
    Ok(&mut buffer[..len])
}
