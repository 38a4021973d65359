# shellcheck shell=bash
# Where the time goes: CPU time of a round trip, and of a gigabit of a stream, from container to container between two
# hosts, by what the kernel does with it; both hosts, and the underlay between them, which is a bridge of the lab's.
# By samples of the CPU's clock (perf), each counted for the innermost function of its stack that tells
# (PROFILE_GROUPS). What other processes do meanwhile is not in it, so it may be measured on a busy machine.
# Sourced by scripts/bench.
# shellcheck source=scripts/bench.d/overlay.sh
. scripts/bench.d/overlay.sh

PROFILE_WAYS=(underlay vxlan routed tunnel segment meshd)
declare -A PROFILE_TITLES=([underlay]=underlay [vxlan]='vxlan alone' [routed]='veth' [tunnel]='veth, vxlan'
    [segment]='meshd, bare' [meshd]='meshd, vxlan')
# Samples a second. No divisor of the kernel's own ticks.
PROFILE_HZ=4999

# A name, and what the functions' names begin with. The first that fits counts.
PROFILE_GROUPS='
copying	rep_movs|copy_|_copy_|__copy|simple_copy|skb_copy_datagram|__skb_datagram_iter|csum_partial|__skb_checksum
memory	__alloc_pages|alloc_pages|__alloc_frozen|get_page_from|rmqueue|free_|__free|clear_page|kmem_|kmalloc|__kmalloc|kfree|__kfree|slab|__slab|___slab|skb_release|__alloc_skb|alloc_skb|skb_page_frag|napi_build|build_skb|consume_skb|skb_attempt_defer|page_frag|folio_|__folio|put_page|skb_free
our programs	bpf_|__bpf|htab_|__htab|trie_lookup|array_map|percpu_array|lookup_nulls|cls_bpf|tcx_|tcf_|skb_do_redirect|__cgroup_bpf
segments	skb_segment|__skb_gso|skb_mac_gso|inet_gso|tcp4_gso|tcp_gso|udp4_ufo|__skb_udp_tunnel|skb_udp_tunnel|skb_gso|dev_gro|inet_gro|tcp4_gro|tcp_gro|udp_gro|udp4_gro|vxlan_gro|napi_gro|gro_
netfilter	nf_|nft_|__nf_|ipt_|nfnl
vxlan out	vxlan_xmit|vxlan_build|vxlan_find|__vxlan_find|vxlan_get|udp_tunnel|iptunnel|udp_set_csum|skb_tunnel|encap_
vxlan in	vxlan_|__vxlan|udp_|__udp|udp4|gro_cell
bridge of the lab	br_|__br_|fdb_|nbp_
veth, backlog	veth_|netif_rx|__netif_rx|enqueue_to|process_backlog|__netif_receive|netif_receive|skb_scrub|eth_type|__napi|napi_|net_rx_action|dev_forward|__dev_forward
device queue	__dev_queue|dev_queue|dev_hard|validate_xmit|netif_skb|sch_|qdisc|pfifo|fq_|netdev_|passthru|skb_network_protocol
IP	ip_|__ip_|ip6_|ipv4_|ipv6_|fib_|inet_addr|__inet_dev|arp_|neigh_|rt_|dst_|raw_|icmp
TCP	tcp_|__tcp|sk_|__sk_|sock_|__sock|inet_|inet6_|lock_sock|release_sock|skb_|__skb|mod_timer|__mod_timer|mem_cgroup|bictcp|cubictcp|ktime|read_tsc
wakeups	schedule|__schedule|try_to_wake|ttwu|wake_|__wake|ep_|do_epoll|eventpoll|futex|finish_task|pick_next|enqueue_task|dequeue_|update_|select_task|switch_|__switch|prepare_to|finish_wait|woken|autoremove|native_smp|smp_|sched_|default_idle|do_idle
softirq	handle_softirqs|__do_softirq|do_softirq|__local_bh|irq_exit|run_ksoftirqd|smpboot
'

profile_begin() {
    scripts/setup profile
    overlay_ways
    overlay_answers "${PROFILE_WAYS[@]}"
}

# profile_groups DIVISOR: perf's samples on standard input; CPU time by group, in µs divided.
profile_groups() {
    awk -v groups="$PROFILE_GROUPS" -v divisor="$1" '
        BEGIN {
            count = split(groups, lines, "\n")
            for (i = 1; i <= count; i++) if (split(lines[i], part, "\t") == 2) {
                name[++n] = part[1]
                begins[n] = "^(" part[2] ")"
            }
        }
        # The group of a function; 0 if it tells nothing.
        function of(symbol, i) {
            if (!(symbol in known)) {
                known[symbol] = 0
                for (i = 1; i <= n && !known[symbol]; i++) if (symbol ~ begins[i]) known[symbol] = i
            }
            return known[symbol]
        }
        function done(i, group, g) {
            if (!counts) return
            for (i = 1; i <= depth; i++) {
                g = of(stack[i])
                # A bridge has hooks of its own.
                if (group && name[group] == "netfilter") {
                    if (!g || g == group) continue
                    if (name[g] ~ /^bridge/) group = g
                    break
                }
                if (g) group = g
                if (group && name[group] != "netfilter") break
            }
            spent[group ? group : n + 1] += period
            counts = 0
        }
        /^[^ \t]/ {
            done()
            depth = 0
            counts = /^(iperf3|meshd-bench|tokio-rt-worker|ksoftirqd)/
            period = $NF
            next
        }
        NF { stack[++depth] = $2 }
        END {
            done()
            name[n + 1] = "system calls, the program"
            for (i = 1; i <= n + 1; i++) { printf "%s\t%.6f\n", name[i], spent[i] / 1000 / divisor; all += spent[i] }
            printf "all\t%.6f\n", all / 1000 / divisor
        }'
}

# profile_one WORK UNIT WAY DIVISOR CMD…: measures CMD in the way's namespace. DIVISOR: of what it says, as jq has it.
profile_one() {
    local work=$1 unit=$2 way=$3 divisor=$4 group value
    shift 4
    in_ns "${FROM[$way]}" perf record -q -a -g -e cpu-clock -F $PROFILE_HZ -o "$WORK/perf" -- "$@" >"$WORK/out" 2>"$WORK/err" ||
        die 1 "$work over $way: $(tail -1 "$WORK/err")"
    while IFS=$'\t' read -r group value; do
        sample "$work: $group" "$unit" "$way" "$value"
    done < <(perf script -i "$WORK/perf" -F comm,period,ip,sym 2>/dev/null | profile_groups "$(jq "$divisor" "$WORK/out")")
}

profile_round() {
    local way
    for way in "${PROFILE_WAYS[@]}"; do
        profile_one 'TCP round trip' µs "$way" .count meshd-bench rr "${TO[$way]}:5000" --seconds "$EACH"
        profile_one 'TCP stream, a gigabit' µs "$way" '.end.sum_received.bytes * 8 / 1e9' iperf3 -c "${TO[$way]}" -t "$EACH" -J
    done
}

# In place of the table of peers: a column for each way, and below it what it is of the underlay's.
profile_table() {
    jq -r --arg ways "${PROFILE_WAYS[*]}" '
        .rows[] | . as $r | ($r.peers + {meshd: $r.meshd}) as $v
            | [$r.work, $r.unit] + ($ways | split(" ") | map($v[.] // 0)) | @tsv' |
        awk -F'\t' -v ways="$(for way in "${PROFILE_WAYS[@]}"; do printf '%s\t' "${PROFILE_TITLES[$way]}"; done)" '
            BEGIN { n = split(ways, title, "\t") - 1; printf "%-48s %-3s", "", ""; for (i = 1; i <= n; i++) printf " %13s", title[i]; print "" }
            { printf "%-48s %-3s", $1, $2; for (i = 3; i < 3 + n; i++) printf " %13.2f", $i; print "" }
            $1 ~ /: all$/ { printf "%-48s %-3s", "  times the underlay", ""; for (i = 3; i < 3 + n; i++) printf " %13.2f", $i / $3; print "\n" }'
}
