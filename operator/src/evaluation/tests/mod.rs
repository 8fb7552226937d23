mod building;
mod scenarios;
mod world;
