# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_tapway_global_optspecs
    string join \n h/help V/version
end

function __fish_tapway_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_tapway_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_tapway_using_subcommand
    set -l cmd (__fish_tapway_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c tapway -n "__fish_tapway_needs_command" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_needs_command" -s V -l version -d 'Print version'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "run" -d 'Run a command in a sandbox with a network of its own'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "attach" -d 'Attach a network namespace that somebody else made to a network: of podman, bubblewrap, unshare'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "detach" -d 'Take what was attached off its network again'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "ps" -d 'List the sandboxes that run'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "exec" -d 'Run a further command in a running sandbox'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "inspect" -d 'Show what is known of sandboxes, as `docker inspect` does'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "logs" -d 'Show what a detached sandbox prints'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "stop" -d 'End sandboxes: TERM to their commands, and KILL after a while'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "kill" -d 'End sandboxes at once, or send their commands a signal'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "rm" -d 'Remove sandboxes'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "network" -d 'Make, show and remove networks that sandboxes share'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "port" -d 'Show the published ports of a running sandbox'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "publish" -d 'Publish ports of a running sandbox'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "unpublish" -d 'Close published ports of a running sandbox'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "dns" -d 'Show or change the name servers and DNS records of a running sandbox'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "hosts" -d 'Show or change the hosts that a running sandbox knows by name'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "info" -d 'Show what a running sandbox is: addresses, offloads, limits, confinement'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "flows" -d 'Show what a running sandbox is connected to, or end a connection'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "stats" -d 'Show the counters of a running sandbox'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "events" -d 'Tell what happens in a running sandbox, as it happens'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "capture" -d 'Write frames of a running sandbox into a pcapng file'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "fault" -d 'Give a running sandbox a bad network on purpose: delay, loss, a slow line, names that fail'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "top" -d 'Watch a running sandbox: flows by rate, names, drops'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "upgrade" -d 'Have a running sandbox served by the tapway that is installed now'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "ctl" -d 'Send a request to a control socket'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "doctor" -d 'Try what this machine can do, line by line, and say what to do about the rest'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "slirp4netns" -d 'Be slirp4netns for callers that know only that one, e.g. podman and RootlessKit; the same as a link of that name'
complete -c tapway -n "__fish_tapway_needs_command" -f -a "version" -d 'Print the version'
complete -c tapway -n "__fish_tapway_using_subcommand run" -l name -d 'Name of the sandbox [default: its id, 12 hex digits]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l network -d 'Network to join: \'bridge\' (shared by all that name no other), one made by \'tapway network create\', \'private\' (one of the sandbox\'s own), \'none\' (only lo), \'host\', or \'container:NAME\' (another sandbox\'s). Of those that you made several, each with a --network; the long form says what is asked of it: name=NET[,alias=NAME][,ip=ADDR][,ip6=ADDR][,mac-address=MAC][,gw-priority=NUMBER]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -s p -l publish -d 'Publish a port: [[HOSTIP:]HOSTPORT:]PORT[/tcp|udp], ranges as 8000-8010:80-90' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l expose -d 'Port for -P: PORT[-END][/tcp|udp]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l ip -d 'Address on the first network that you made [default: the lowest that is free]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l ip6 -d 'IPv6 address on the first network that you made [default: the lowest that is free]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l network-alias -d 'Further name on the first network that you made' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l link -d 'Call another sandbox of the first network by a name that only this one knows' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l mtu -d 'MTU of the interface inside, in bytes (68 to 65521; 1280 or more with IPv6); a shared network has its own [default: 65520]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l subnet -d 'Subnet inside, IPv4 or an IPv6 /64; once for each family [default: 10.0.2.0/24 and a random fd…/64]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l ipv6 -d 'IPv6 inside' -r -f -a "on\t'Yes'
off\t'No'"
complete -c tapway -n "__fish_tapway_using_subcommand run" -l queues -d 'Queues of each interface, 1 to 8, each served by a thread of its own [default: one for every two cores, up to 4; or TAPWAY_QUEUES]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l mac-address -d 'MAC address of the first interface inside [default: random, or made of the address on a shared network]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l outbound-addr -d 'Source of outgoing connections: an address of the host, or the name of an interface' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l dns -d 'Name server to forward queries to, ADDRESS or ADDRESS:PORT [default: those of the host, as they change]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l add-host -d 'Line in /etc/hosts; IP may be \'host-gateway\'' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l metrics-listen -d 'Serve metrics there by HTTP, for Prometheus; without IP on 127.0.0.1, and port 0 is one that is free' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l pcap -d 'Write every frame to this file (pcapng)' -r -F
complete -c tapway -n "__fish_tapway_using_subcommand run" -l log-format -d 'Form of log lines' -r -f -a "text\t'For people'
json\t'One JSON object a line'"
complete -c tapway -n "__fish_tapway_using_subcommand run" -s h -l hostname -d 'Host name inside [default: the id]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l dns-search -d 'Search domain in /etc/resolv.conf; \'.\' for none [default: the host\'s]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l dns-option -d 'Option in /etc/resolv.conf, such as ndots:1 [default: the host\'s]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l user -d 'User inside: UID[:GID], or \'keep\' for your own ids [default: root]' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -l pid -d 'Process ids: \'private\', or \'host\' to share the host\'s' -r
complete -c tapway -n "__fish_tapway_using_subcommand run" -s P -l publish-all -d 'Publish every port of --expose that has no -p of its own, at a host port that is chosen'
complete -c tapway -n "__fish_tapway_using_subcommand run" -l allow-host-loopback -d 'Let the gateway address reach servers that listen on the host\'s 127.0.0.1 and ::1 only'
complete -c tapway -n "__fish_tapway_using_subcommand run" -l allow-link-local -d 'Let 169.254.0.0/16 be reached (metadata services of clouds live there)'
complete -c tapway -n "__fish_tapway_using_subcommand run" -s v -l verbose -d 'Tell more; repeat for more still'
complete -c tapway -n "__fish_tapway_using_subcommand run" -s d -l detach -d 'Run in the background: print the id when the sandbox is up; \'tapway logs\' shows its output'
complete -c tapway -n "__fish_tapway_using_subcommand run" -l rm -d 'With --detach: remove the logs when it ends. Nothing else is ever left behind'
complete -c tapway -n "__fish_tapway_using_subcommand run" -s i -l interactive -d 'Accepted out of habit; stdin is always the caller\'s'
complete -c tapway -n "__fish_tapway_using_subcommand run" -s t -l tty -d 'Accepted out of habit; the terminal is always the caller\'s'
complete -c tapway -n "__fish_tapway_using_subcommand run" -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l name -d 'Name of the sandbox [default: its id, 12 hex digits]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l network -d 'Network to join: \'bridge\' (shared by all that name no other), one made by \'tapway network create\', \'private\' (one of the sandbox\'s own), \'none\' (only lo), \'host\', or \'container:NAME\' (another sandbox\'s). Of those that you made several, each with a --network; the long form says what is asked of it: name=NET[,alias=NAME][,ip=ADDR][,ip6=ADDR][,mac-address=MAC][,gw-priority=NUMBER]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -s p -l publish -d 'Publish a port: [[HOSTIP:]HOSTPORT:]PORT[/tcp|udp], ranges as 8000-8010:80-90' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l expose -d 'Port for -P: PORT[-END][/tcp|udp]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l ip -d 'Address on the first network that you made [default: the lowest that is free]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l ip6 -d 'IPv6 address on the first network that you made [default: the lowest that is free]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l network-alias -d 'Further name on the first network that you made' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l link -d 'Call another sandbox of the first network by a name that only this one knows' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l mtu -d 'MTU of the interface inside, in bytes (68 to 65521; 1280 or more with IPv6); a shared network has its own [default: 65520]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l subnet -d 'Subnet inside, IPv4 or an IPv6 /64; once for each family [default: 10.0.2.0/24 and a random fd…/64]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l ipv6 -d 'IPv6 inside' -r -f -a "on\t'Yes'
off\t'No'"
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l queues -d 'Queues of each interface, 1 to 8, each served by a thread of its own [default: one for every two cores, up to 4; or TAPWAY_QUEUES]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l mac-address -d 'MAC address of the first interface inside [default: random, or made of the address on a shared network]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l outbound-addr -d 'Source of outgoing connections: an address of the host, or the name of an interface' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l dns -d 'Name server to forward queries to, ADDRESS or ADDRESS:PORT [default: those of the host, as they change]' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l add-host -d 'Line in /etc/hosts; IP may be \'host-gateway\'' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l metrics-listen -d 'Serve metrics there by HTTP, for Prometheus; without IP on 127.0.0.1, and port 0 is one that is free' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l pcap -d 'Write every frame to this file (pcapng)' -r -F
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l log-format -d 'Form of log lines' -r -f -a "text\t'For people'
json\t'One JSON object a line'"
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l interface -d 'Name of the interface inside' -r
complete -c tapway -n "__fish_tapway_using_subcommand attach" -s P -l publish-all -d 'Publish every port of --expose that has no -p of its own, at a host port that is chosen'
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l allow-host-loopback -d 'Let the gateway address reach servers that listen on the host\'s 127.0.0.1 and ::1 only'
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l allow-link-local -d 'Let 169.254.0.0/16 be reached (metadata services of clouds live there)'
complete -c tapway -n "__fish_tapway_using_subcommand attach" -s v -l verbose -d 'Tell more; repeat for more still'
complete -c tapway -n "__fish_tapway_using_subcommand attach" -s d -l detach -d 'Run in the background: print the id when the sandbox is up; \'tapway logs\' shows its output'
complete -c tapway -n "__fish_tapway_using_subcommand attach" -l rm -d 'With --detach: remove the logs when it ends. Nothing else is ever left behind'
complete -c tapway -n "__fish_tapway_using_subcommand attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand ps" -s f -l filter -d 'Only those that fit' -r
complete -c tapway -n "__fish_tapway_using_subcommand ps" -l format -d 'Form of the output: \'table\', \'table TEMPLATE\', \'json\' or a Go template' -r
complete -c tapway -n "__fish_tapway_using_subcommand ps" -s a -l all -d 'Show those that have ended, too, as long as their logs are kept'
complete -c tapway -n "__fish_tapway_using_subcommand ps" -s q -l quiet -d 'Print ids alone'
complete -c tapway -n "__fish_tapway_using_subcommand ps" -l no-trunc -d 'Show whole commands'
complete -c tapway -n "__fish_tapway_using_subcommand ps" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand ps" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand exec" -s e -l env -d 'Set a variable of its environment' -r
complete -c tapway -n "__fish_tapway_using_subcommand exec" -s w -l workdir -d 'Where it starts [default: where the caller is, or / if that is hidden inside]' -r -F
complete -c tapway -n "__fish_tapway_using_subcommand exec" -s u -l user -d 'User inside [default: that of the sandbox\'s command]' -r
complete -c tapway -n "__fish_tapway_using_subcommand exec" -s d -l detach -d 'Do not wait for it; its standard streams are /dev/null'
complete -c tapway -n "__fish_tapway_using_subcommand exec" -s i -l interactive -d 'Accepted out of habit; stdin is always the caller\'s'
complete -c tapway -n "__fish_tapway_using_subcommand exec" -s t -l tty -d 'Accepted out of habit; the terminal is always the caller\'s'
complete -c tapway -n "__fish_tapway_using_subcommand exec" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand inspect" -s f -l format -d 'Form of the output: \'json\' or a Go template' -r
complete -c tapway -n "__fish_tapway_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand logs" -s n -l tail -d 'Only so many lines at the end, or \'all\'' -r
complete -c tapway -n "__fish_tapway_using_subcommand logs" -l since -d 'Only what came after: a time such as 2026-01-31T12:00:00Z, or a span before now such as 10m' -r
complete -c tapway -n "__fish_tapway_using_subcommand logs" -s f -l follow -d 'Go on as more comes, until the sandbox ends'
complete -c tapway -n "__fish_tapway_using_subcommand logs" -s t -l timestamps -d 'Print the time of each line'
complete -c tapway -n "__fish_tapway_using_subcommand logs" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand stop" -s t -l time -d 'Seconds after which the command is killed [default: 10]' -r
complete -c tapway -n "__fish_tapway_using_subcommand stop" -s s -l signal -d 'Signal that is sent first [default: TERM]' -r
complete -c tapway -n "__fish_tapway_using_subcommand stop" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand kill" -s s -l signal -d 'Signal to send' -r
complete -c tapway -n "__fish_tapway_using_subcommand kill" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand rm" -s f -l force -d 'End those that run, and do not mind those that are not there'
complete -c tapway -n "__fish_tapway_using_subcommand rm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "create" -d 'Make a network'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "connect" -d 'Connect a running sandbox to one more network'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "disconnect" -d 'Take a running sandbox off a network'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "ls" -d 'List networks'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "list" -d 'List networks'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "inspect" -d 'Show what networks are, and who is in them'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "rm" -d 'Remove networks'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "remove" -d 'Remove networks'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "upgrade" -d 'Have a process of this version take over from the running one'
complete -c tapway -n "__fish_tapway_using_subcommand network; and not __fish_seen_subcommand_from create connect disconnect ls list inspect rm remove upgrade prune" -f -a "prune" -d 'Remove all networks that no running sandbox is in'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -s d -l driver -d 'Kind of network; there is \'bridge\' alone' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l subnet -d 'Subnet, one of IPv4 and one of IPv6; 0.0.0.0/24 is any free one of that size [default: the next of Docker\'s pools]' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l gateway -d 'Address of the gateway [default: the first of the subnet or of its --ip-range]' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l ip-range -d 'Part of the subnet that addresses are given from' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l aux-address -d 'Address that is given to nobody' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l internal -d 'No way out and no published ports' -r -f -a "true\t''
false\t''"
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l ipv6 -d 'IPv6 as well; its subnet is a random fd…/64 unless given' -r -f -a "true\t''
false\t''"
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -s o -l opt -d 'Option of the network; see docs/networks.md' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l label -d 'Label' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l attachable -d 'Kept and shown; every network can be attached to' -r -f -a "true\t''
false\t''"
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l ipv4 -d 'IPv4, which every network has' -r -f -a "true\t''
false\t''"
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l scope -d 'Only \'local\'' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l ipam-driver -d 'Only \'default\'' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l ipam-opt -d 'Refused' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l ingress -d 'Refused' -r -f -a "true\t''
false\t''"
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l config-only -d 'Refused' -r -f -a "true\t''
false\t''"
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l config-from -d 'Refused' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l alias -d 'Further name of the sandbox on the network' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l driver-opt -d 'Not supported: there are no such options' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l gw-priority -d 'The highest of a sandbox\'s networks is its gateway' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l ip -d 'Address [default: the lowest that is free]' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l ip6 -d 'IPv6 address [default: the lowest that is free]' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l link -d 'Call another sandbox of the network by a name that only this one knows' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l link-local-ip -d 'Not supported: the kernel makes these addresses' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l mac-address -d 'MAC address [default: made of the address]' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -l json -d 'Print JSON: what the sandbox got'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from disconnect" -s f -l force -d 'No error if the sandbox is not there'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from disconnect" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from disconnect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from ls" -s f -l filter -d 'Show only those of this kind' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from ls" -l format -d 'Form of the output: \'table\', \'table TEMPLATE\', \'json\' or a Go template' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from ls" -s q -l quiet -d 'Print ids only'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from ls" -l no-trunc -d 'Print ids whole'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from ls" -l json -d 'Print JSON: one object with everything that is known'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from ls" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from list" -s f -l filter -d 'Show only those of this kind' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from list" -l format -d 'Form of the output: \'table\', \'table TEMPLATE\', \'json\' or a Go template' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from list" -s q -l quiet -d 'Print ids only'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from list" -l no-trunc -d 'Print ids whole'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from list" -l json -d 'Print JSON: one object with everything that is known'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from inspect" -s f -l format -d 'Form of the output: \'json\' or a Go template' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from inspect" -l json -d 'Print JSON in one line'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from inspect" -s v -l verbose -d 'Also ask the network\'s process: its members\' ports of the switch, MACs, counters, drops'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from rm" -s f -l force -d 'No error for networks that are not there'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from rm" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from rm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from remove" -s f -l force -d 'No error for networks that are not there'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from remove" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from upgrade" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from upgrade" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from prune" -l filter -d 'Remove only those of this kind' -r
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from prune" -s f -l force -d 'Do not ask'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from prune" -l json -d 'Print JSON; does not ask'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from prune" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand port" -l stats -d 'What went through each port'
complete -c tapway -n "__fish_tapway_using_subcommand port" -l json -d 'Print JSON: Docker\'s object, or with --stats the protocol\'s'
complete -c tapway -n "__fish_tapway_using_subcommand port" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand publish" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand publish" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand unpublish" -l id -d 'Number of a published port; once for each' -r
complete -c tapway -n "__fish_tapway_using_subcommand unpublish" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand unpublish" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and not __fish_seen_subcommand_from ls set add rm" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and not __fish_seen_subcommand_from ls set add rm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and not __fish_seen_subcommand_from ls set add rm" -a "ls" -d 'Show settings and records'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and not __fish_seen_subcommand_from ls set add rm" -a "set" -d 'Change settings; what is not named stays'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and not __fish_seen_subcommand_from ls set add rm" -a "add" -d 'Add a record'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and not __fish_seen_subcommand_from ls set add rm" -a "rm" -d 'Remove records'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from ls" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from ls" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from set" -l server -d 'Name server, ADDRESS or ADDRESS:PORT; once for each, in order of preference' -r
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from set" -l search -d 'Search domain; \'.\' for none' -r
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from set" -l option -d 'Resolver option, such as ndots:2; \'.\' for none' -r
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from set" -l zone -d 'Domain with name servers of its own; \'.\' for no such domain' -r
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from set" -l follow-host -d 'Ask the host\'s name servers again, as they change'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from set" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from add" -l ttl -d 'Time to live, seconds [default: 60]' -r
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from add" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from rm" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand dns; and __fish_seen_subcommand_from rm" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and not __fish_seen_subcommand_from ls add rm" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and not __fish_seen_subcommand_from ls add rm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and not __fish_seen_subcommand_from ls add rm" -a "ls" -d 'Show the hosts'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and not __fish_seen_subcommand_from ls add rm" -a "add" -d 'Add an address of a name'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and not __fish_seen_subcommand_from ls add rm" -a "rm" -d 'Remove a name, or one address of it'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and __fish_seen_subcommand_from ls" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and __fish_seen_subcommand_from ls" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and __fish_seen_subcommand_from add" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and __fish_seen_subcommand_from rm" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand hosts; and __fish_seen_subcommand_from rm" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand info" -l network -d 'Of this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand info" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand info" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand flows" -l network -d 'Of this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand flows" -l protocol -d 'Only flows of this protocol' -r
complete -c tapway -n "__fish_tapway_using_subcommand flows" -l guest -d 'Only flows of this address, network or port of the guest: ADDR, ADDR/BITS, ADDR:PORT, :PORT' -r
complete -c tapway -n "__fish_tapway_using_subcommand flows" -l peer -d 'Only flows with this address, network or port at the other end' -r
complete -c tapway -n "__fish_tapway_using_subcommand flows" -l state -d 'Only flows in this state, as it is shown' -r
complete -c tapway -n "__fish_tapway_using_subcommand flows" -l limit -d 'Show at most so many' -r
complete -c tapway -n "__fish_tapway_using_subcommand flows" -l kill -d 'End this flow instead' -r
complete -c tapway -n "__fish_tapway_using_subcommand flows" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand flows" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand stats" -l network -d 'Of this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand stats" -l all -d 'Show those that are 0 as well'
complete -c tapway -n "__fish_tapway_using_subcommand stats" -l metrics -d 'Print OpenMetrics text instead'
complete -c tapway -n "__fish_tapway_using_subcommand stats" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand stats" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand events" -l network -d 'Of this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand events" -s n -l count -d 'End after so many' -r
complete -c tapway -n "__fish_tapway_using_subcommand events" -l json -d 'Print JSON, an object a line'
complete -c tapway -n "__fish_tapway_using_subcommand events" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand capture" -l network -d 'Of this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand capture" -l host -d 'Only frames from or to this address or network' -r
complete -c tapway -n "__fish_tapway_using_subcommand capture" -l port -d 'Only TCP and UDP from or to this port' -r
complete -c tapway -n "__fish_tapway_using_subcommand capture" -l protocol -d 'Only this protocol, such as tcp, udp, icmp, arp' -r
complete -c tapway -n "__fish_tapway_using_subcommand capture" -l snap -d 'Bytes kept of each frame [default: all]' -r
complete -c tapway -n "__fish_tapway_using_subcommand capture" -l max -d 'End before the file is longer than this' -r
complete -c tapway -n "__fish_tapway_using_subcommand capture" -l json -d 'At the end, print what came of it as JSON on stdout'
complete -c tapway -n "__fish_tapway_using_subcommand capture" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and not __fish_seen_subcommand_from set clear ls" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and not __fish_seen_subcommand_from set clear ls" -f -a "set" -d 'Delay, lose or slow packets, or have questions for names fail'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and not __fish_seen_subcommand_from set clear ls" -f -a "clear" -d 'End faults; all of them unless some are named'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and not __fish_seen_subcommand_from set clear ls" -f -a "ls" -d 'Show faults, and what they did so far'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l latency -d 'How much later packets come, in each direction: 50ms, 1.5s, 200us; at most 60s' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l jitter -d 'Up to so much earlier or later than that, evenly distributed; no packet overtakes another' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l reorder -d 'Have packets overtake each other where jitter says so' -r -f -a "on\t'On'
off\t'Off'"
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l loss -d 'Share of packets that never come: 1%, 0.1%' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l rate -d 'What the line carries, in bits a second: 10mbit, 1.5gbit, 64kbit' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l dns-fail -d 'Share of questions for names that are answered SERVFAIL' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l direction -d 'Which packets [default: both, each by itself]' -r -f -a "from-guest\t'Those that the sandbox sends'
to-guest\t'Those that it is sent'
both\t'Both, each by itself'"
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l to -d 'Only packets from and to this peer: an address, a network, or a name that the sandbox can resolve' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l seed -d 'Begin chance anew with this number, by which the same packets meet the same faults again' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l network -d 'On this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from clear" -l to -d 'Only what was set for this peer' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from clear" -l direction -d 'Only this direction' -r -f -a "from-guest\t'Those that the sandbox sends'
to-guest\t'Those that it is sent'
both\t'Both, each by itself'"
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from clear" -l network -d 'On this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from clear" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from clear" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from ls" -l network -d 'On this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from ls" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from ls" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand top" -l network -d 'Of this one of its networks, where it is on several [default: that which has the default route]' -r
complete -c tapway -n "__fish_tapway_using_subcommand top" -l interval -d 'Seconds between two frames (0.1 to 60)' -r
complete -c tapway -n "__fish_tapway_using_subcommand top" -l once -d 'Print one frame and end'
complete -c tapway -n "__fish_tapway_using_subcommand top" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand upgrade" -l json -d 'Print JSON'
complete -c tapway -n "__fish_tapway_using_subcommand upgrade" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand ctl" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tapway -n "__fish_tapway_using_subcommand doctor" -l json -d 'Print one JSON object instead of lines'
complete -c tapway -n "__fish_tapway_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -s e -l exit-fd -d 'end when the other side of this descriptor closes' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -s r -l ready-fd -d 'write a \'1\' to this descriptor once the network is ready' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -s m -l mtu -d 'MTU of the interface, 1 to 65521 (default 1500)' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l cidr -d 'IPv4 network, /1 to /25 (default 10.0.2.0/24)' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l netns-type -d 'what the first argument is: pid (default), path or tapfd' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l userns-path -d 'user namespace to join first' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -s a -l api-socket -d 'take requests for port forwards at this Unix socket' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l outbound-addr -d 'IPv4 source of connections to outside: address or interface' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l outbound-addr6 -d 'IPv6 source of connections to outside: address or interface' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l macaddress -d 'MAC address of the interface (only with -c)' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l target-type -d 'netns (default), or bess: frames over a Unix socket' -r
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -s c -l configure -d 'give the interface its address, MTU and route, and raise it'
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l disable-host-loopback -d 'the gateway does not lead to the host\'s 127.0.0.1'
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -s 6 -l enable-ipv6 -d 'IPv6, too: fd00::/64'
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l enable-sandbox -d 'see nothing of the file system but /etc and /run'
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l enable-seccomp -d 'restrict system calls (always on here)'
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -l disable-dns -d 'do not answer names at the network\'s third address'
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -s h -l help -d 'print this and exit'
complete -c tapway -n "__fish_tapway_using_subcommand slirp4netns" -s v -l version -d 'print what this is and exit'
complete -c tapway -n "__fish_tapway_using_subcommand version" -s h -l help -d 'Print help'
complete -c tapway -n "__fish_tapway_using_subcommand detach" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand exec" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand inspect" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand logs" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand stop" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand kill" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand rm" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand port" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand publish" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand unpublish" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand dns" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand hosts" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand info" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand flows" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand stats" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand events" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand capture" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand top" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand upgrade" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand ctl" -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from set" -f -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from clear" -f -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand fault; and __fish_seen_subcommand_from ls" -f -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -f -a "(tapway __complete networks 2>/dev/null)" -d 'Network'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from connect" -f -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from disconnect" -f -a "(tapway __complete networks 2>/dev/null)" -d 'Network'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from disconnect" -f -a "(tapway __complete sandboxes 2>/dev/null)" -d 'Sandbox'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from inspect" -f -a "(tapway __complete networks 2>/dev/null)" -d 'Network'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from rm" -f -a "(tapway __complete networks 2>/dev/null)" -d 'Network'
complete -c tapway -n "__fish_tapway_using_subcommand network; and __fish_seen_subcommand_from upgrade" -f -a "(tapway __complete networks 2>/dev/null)" -d 'Network'
