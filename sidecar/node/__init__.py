"""Access to the machine: every command, every file in /proc, every socket.

Imports log and what is below it. Start with `reconcile` (one pass) and `command` (the only user of sh). What belongs
together:

- addresses and links: iproute
- rules: backends (which iptables), on iptables (changes), iptables_observer (looks), iptables_program (one command);
  listings and seen (what looks show), nft_rules and nft_expressions (what iptables does not show)
- tables of nft itself: nft, nft_tables
- other instances: claims, instances, backends_shown, ports
- what wakes up the daemon: events, with netlink, xtables_lock, legacy_tables
- commands: command, child, programs, signals
"""
