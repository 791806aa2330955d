"""Meshes of devices: how they are named, what lies where, and a decode whose rows and weights are spread over one."""
