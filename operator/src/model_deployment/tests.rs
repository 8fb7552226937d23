mod building;
mod observing;
mod scenarios;
mod validating;
