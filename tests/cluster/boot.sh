#!/usr/bin/env bash
# The first process of every machine of the virtual cluster, in its own namespaces.
#
#   boot.sh login FOLDER NODES      the login node: networks, munge, slurmctld and, under it, the compute nodes
#   boot.sh node  FOLDER NUMBER     a compute node: its interfaces and slurmd
#
# It ends when its stdin does, and the kernel ends with it whatever runs on the machine.
set -euo pipefail
role=$1 folder=$2 number=$3

machine() {  # NAME: what every machine has of its own
    hostname "$1"
    mount -t tmpfs -o size=1g,mode=1777 "shm-$1" /dev/shm
    # By this id transports tell whether a peer is on the same machine.
    cat /proc/sys/kernel/random/uuid >"$folder/$1.boot"
    mount --bind "$folder/$1.boot" /proc/sys/kernel/random/boot_id
    mount -t sysfs sysfs /sys  # that of its own network
    ip link set lo up
}

case $role in
login)
    machine login
    mount --bind "$folder/hosts" /etc/hosts
    # Two networks: eth0 reaches every machine, hsn0 only joins the compute nodes.
    ip link add eth0 type bridge
    ip link add hsn type bridge
    ip address add 10.77.0.1/24 dev eth0
    ip link set eth0 up
    ip link set hsn up
    munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munge.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed" 2>"$folder/log/munged.err"
    slurmctld -D </dev/null >"$folder/log/slurmctld.err" 2>&1 &
    for ((node = 0; node < number; node++)); do
        mkfifo "$folder/node$node.in"
        unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc \
            "$0" node "$folder" "$node" <>"$folder/node$node.in" >"$folder/log/node$node.err" 2>&1 &
        # Its child is in the new network; the parent stays here.
        until child=$(cat "/proc/$!/task/$!/children") && [ -n "$child" ]; do sleep 0.01; done
        for network in eth0 hsn; do
            ip link add "$network-$node" type veth peer name "$network" netns "${child% }"
            ip link set "$network-$node" master "$network" up
        done
        echo >"$folder/node$node.in"
    done
    echo up
    cat >/dev/null
    ;;
node)
    read -r  # its interfaces are there
    machine "node$number"
    ip link set hsn name hsn0
    ip address add "10.77.0.$((10 + number))/24" dev eth0
    ip address add "10.78.0.$((10 + number))/24" dev hsn0
    ip link set eth0 up
    ip link set hsn0 up
    slurmd -D </dev/null &
    cat >/dev/null
    ;;
esac
