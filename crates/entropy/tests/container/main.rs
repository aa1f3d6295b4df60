//! Tests of packed files: round trips, deltas, damage, hostile indexes, files on disk.

mod damage;
mod delta;
mod disk;
mod golden;
mod hostile;
mod lost;
mod made;
mod round_trip;
