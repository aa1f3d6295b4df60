//! Which handles are open. A number is given to one thing only, ever, so a stale handle never finds another.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::status::{Failure, Outcome, tp_status};

/// The open things of one kind. Who has looked one up keeps it until done, whoever closes it meanwhile.
#[derive(Debug)]
pub(crate) struct Table<T> {
    kind: &'static str,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Table<T> {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, open: RwLock::default() }
    }

    pub(crate) fn insert(&self, ids: &Ids, thing: T) -> u64 {
        let id = ids.next();
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(thing));
        id
    }

    pub(crate) fn get(&self, id: u64) -> Outcome<Arc<T>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).cloned().ok_or_else(|| self.closed(id))
    }

    pub(crate) fn remove(&self, id: u64) -> Outcome<()> {
        let removed = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        // Outside of the lock: what is dropped may take a while.
        removed.map(drop).ok_or_else(|| self.closed(id))
    }

    fn closed(&self, id: u64) -> Failure {
        let why = if id == 0 { "is zero: never opened, or closed" } else { "is not open here" };
        Failure::new(tp_status::Closed, format!("this {} {why}", self.kind))
    }
}

/// The numbers of one context's handles. They begin anywhere, so that those of another context are strangers here.
#[derive(Debug)]
pub(crate) struct Ids(AtomicU64);

impl Ids {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(RandomState::new().hash_one(0u8)))
    }

    fn next(&self) -> u64 {
        loop {
            let id = self.0.fetch_add(1, Ordering::Relaxed);
            // Zero is no handle.
            if id != 0 {
                return id;
            }
        }
    }
}
