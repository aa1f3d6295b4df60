//! LAPACK as a second backend.
