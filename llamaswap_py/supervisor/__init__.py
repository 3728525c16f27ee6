"""The meeting point of the parts: prepares, loads, leases and unloads models.

supervisor         hands events to the scheduler, and carries out the actions that it decides on
leases             open requests: which wait for an instance, and which hold one
instances          the children that run, from their start to their end
prepare            turns a preset of the file into what a child needs
reload, overrides  changes of the file, and of single keys, while lswap serves
estimation, fit    the memory that each preset needs on each device, and whether that is there
kv_cache, prefetch, resumable_streams, downloads, reservations   what some requests need besides
snapshots, event_log, recorder   what is shown and written of all that
"""
