//! The group of voters under everything that can happen to it: messages lost, late, twice and out
//! of order; partitions, also one-way and partial; crashes that lose what was not durable; journals
//! that are slow, full or broken; clocks that drift; members that come and go.

mod faults;
mod hostile;
mod members;
mod recover;
mod world;
