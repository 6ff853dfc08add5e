"""The parts of the deploy helper. Each imports only from its own package and from lower lines of this drawing:

    7  rollback  commands  upkeep  spending   the way back | what changes no endpoint | its workers | its bill
       storage_commands                     volumes, credentials of registries, models
       hub_files  settings_page  gallery    three commands: the Hub's files, docs/settings.md, docs/gallery.md
    6  proof  diagnosis                     does the endpoint serve? | why it does not
       display  endpoint_display  costs     plans in tables | endpoints in tables | what pictures cost
       fill                                 how a volume is filled
    5  intent                               what a deployment is to reach
       purchase                             which pools are taken, and how long a job may run there
       offers                               what each pool offers for its price
       build_plan  fill_pod                 what a build takes, and where weights come from | the Pod that fills
    4  configuration  options  session      an endpoint's fields | the command line | what all commands work with
       command_options  storage_options     and the parts of the command line that are not about deployments
       estimates  overrun                   seconds of a picture on a card | what a job took against its limit
       released  volumes                    the released models | volumes and their data centres
    3  records  screen                      what this machine keeps | what the operator sees
       cards  endpoints  environment  image  pictures
    2  runpod                               RunPod's side: schemas, refusals, client, api and jobs, storage, start_log,
                                            waiting, rollout, in order
    1  errors  packages                     what went wrong | what is not installed

`deploy_qwen.py` tells the story that they serve; nothing here imports it. Nothing here imports torch or PIL: this runs
on the operator's machine, with the packages of requirements-deploy.txt.
"""
