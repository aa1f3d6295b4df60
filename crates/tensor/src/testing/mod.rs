//! For tests of this workspace and of anyone's own nodes: the laws every node obeys, and where test data lies.

pub mod data;
pub mod golden;
pub mod laws;
