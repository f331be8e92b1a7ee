//! Nodes joined by a network in memory: no clock, no socket, and the same trace every time.

mod apply;
mod asking;
mod asking_again;
mod asking_bounds;
mod asking_directions;
mod batch;
mod capture;
mod cookies;
mod ecn;
mod endpoints;
mod events;
mod garbage;
mod hostile;
mod links;
mod net;
mod own;
mod paths;
mod poisoned;
mod policy;
mod putting_out;
mod recording;
mod routing;
mod sources;
mod timestamps;
