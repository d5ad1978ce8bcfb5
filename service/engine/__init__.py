"""Runs the models: scheduler, runner, engine process, protocol and the client the HTTP process talks to."""
