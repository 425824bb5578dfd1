# Where the tests' SLURM lives, and what of it runs. Sourced by start.sh and stop.sh.

HOME_OF_ALL=/run/agentsafe-slurm
CONF=/etc/slurm/slurm.conf

# The process id of a daemon that start.sh started, if it is alive.
pid_of() {
    local pid
    pid=$(cat "$HOME_OF_ALL/$1.pid" 2> /dev/null) || return 1
    [[ $(cat "/proc/$pid/comm" 2> /dev/null) == "$1" ]] && echo "$pid"
}

running() {
    pid_of "$1" > /dev/null
}
